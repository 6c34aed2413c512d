"""Answers are scored in jobs of so many tokens."""

from __future__ import annotations

from itertools import chain, pairwise

from hypothesis import given
from hypothesis import strategies as st

from prefine.serving.routes.score import within


@given(st.lists(st.integers(1, 50)), st.integers(1, 100))
def test_every_answer_is_in_one_job_none_is_too_large_and_none_could_have_joined_the_one_before(
    lengths: list[int], most: int
) -> None:
    jobs = list(within(lengths, most))
    assert list(chain(*jobs)) == list(range(len(lengths)))
    sizes = [sum(lengths[place] for place in job) for job in jobs]
    assert all(size <= most or len(job) == 1 for size, job in zip(sizes, jobs, strict=True))
    assert all(size + lengths[after.start] > most for size, (_, after) in zip(sizes, pairwise(jobs), strict=False))
