"""The page as its readers get it: what is on it, what can never be, and what it does without."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefine.errors import CheckpointError
from prefine.report.facts import RunFacts, read_run
from prefine.report.page import build_context, render, write_report

VOID = {"meta", "br", "link", "img", "input", "hr"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</style></svg></textarea><iframe src=//evil.example>",
    "{{ 7 * 7 }}{% raw %}",
    "javascript:alert(1)",
    "&lt;b&gt;",
    "\u202egnitpecsus\0\x1b[2J\ud800",
]
EMPTY = RunFacts(name="run", manifest={}, train=[], heldout=[], evaluation={}, samples=[])


class Page(HTMLParser):
    """A page read: its text, tags and attributes; fails on a tag that is not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open
        ids = [value for _, name, value in self.attributes if name == "id"]
        assert len(ids) == len(set(ids))

    @property
    def text(self) -> str:
        """What is read, white space and joiners made plain."""
        return re.sub(r"\s+", " ", " ".join(self.words).replace("\u2060", ""))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] != "style":
            self.words.append(data)

    def assert_harmless(self) -> None:
        """No script, and nothing that a browser would fetch."""
        assert not {"script", "iframe", "object", "embed", "link", "img", "form", "base"} & set(self.tags)
        for tag, name, value in self.attributes:
            assert not name.startswith("on"), (tag, name)
            assert name not in {"src", "srcset", "action", "data", "background", "xlink:href"}, (tag, name)
            if name == "href":
                assert value.startswith("#")
            if tag == "meta" and name == "http-equiv":
                assert value == "Content-Security-Policy"
        assert (
            "meta",
            "content",
            "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
        ) in self.attributes


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_page_needs_nothing_from_outside(dpo_run: Path, sft_run: Path) -> None:
    for run in (dpo_run, sft_run):
        html = write_report(run).read_text(encoding="utf-8")
        Page(html).assert_harmless()
        assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", html)


def test_the_same_files_give_the_same_bytes(dpo_run: Path, tmp_path: Path, new_dpo_run: Callable[[Path], Path]) -> None:
    first = write_report(dpo_run).read_bytes()
    assert write_report(dpo_run).read_bytes() == first
    again = new_dpo_run(tmp_path / "elsewhere" / "dpo")
    assert write_report(again).read_bytes() == first


def test_the_headline_of_a_dpo_run(dpo_run: Path) -> None:
    text = page_of(dpo_run).text
    assert (
        "Training moved the model towards the preferred answer in 84 % of 32 held-out pairs; "
        "it ranks the preferred answer first in 66 % (53 % before: no change shown)." in text
    )
    assert "27 of 32, 95 % interval 68–93 %" in text
    assert "21 of 32, 95 % interval 48–80 % now, 17 of 32, 95 % interval 36–69 % before" in text
    assert "The interval includes 0: no change shown." in text
    assert "32 held-out pairs: the intervals are wide." in text


def test_the_headline_of_an_sft_run(sft_run: Path) -> None:
    figures = load(sft_run / "evaluation.json")["heldout"]
    before, after = figures["before"], figures["after"]
    text = page_of(sft_run).text
    assert (
        f"The perplexity of 36 held-out answers was {before['perplexity']:.1f} before and is {after['perplexity']:.1f} "
        "after." in text
    )
    assert f"Loss: {before['loss']:.3f} nats per token before, {after['loss']:.3f} after." in text
    assert "whether this is more than chance is not known" in text


@pytest.mark.parametrize(("changes", "said"), [((-1.5, -1.25, -1.0), "fell from"), ((-1.0, 0.5, -1.0), "No change")])
def test_the_headline_of_an_sft_run_that_recorded_each_answer(
    sft_run: Path, changes: tuple[float, ...], said: str
) -> None:
    evaluation = load(sft_run / "evaluation.json")
    rows = [{"tokens": 10 + i, "before_loss": 3.0, "after_loss": 3.0 + by} for i, by in enumerate(changes)]
    evaluation["heldout"] |= {"rows": rows}
    (sft_run / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    text = page_of(sft_run).text
    weighed = sum((10 + i) * by for i, by in enumerate(changes)) / 33
    assert f"perplexity of 36 held-out answers {said}" in text or f"{said} shown in the perplexity of 36" in text
    assert f"Change of the loss: \u2212{-weighed:.3f} (95 % interval" in text
    assert f"The perplexity is now {math.exp(weighed):.2f} times what it was" in text


def test_numbers_are_those_of_the_files(dpo_run: Path) -> None:
    text = page_of(dpo_run).text.replace("\u2212", "-")
    evaluation, manifest = load(dpo_run / "evaluation.json"), load(dpo_run / "manifest.json")
    before, after, pairs = (evaluation["heldout"][key] for key in ("before", "after", "pairs"))
    assert f"Loss: held-out {before['loss']:.3f} → {after['loss']:.3f}" in text
    assert f"Mean reward margin +{after['margin']:.2f} nats" in text
    assert f"chosen {before['logp_chosen']:.1f} → {after['logp_chosen']:.1f}" in text
    assert f"rejected {before['logp_rejected']:.1f} → {after['logp_rejected']:.1f}" in text
    right = sum(pair["chosen_shift"] > pair["rejected_shift"] for pair in pairs)
    assert f"{right} of 32 pairs moved towards the preferred answer" in text
    both_fell = sum(pair["chosen_shift"] < 0 and pair["rejected_shift"] < 0 for pair in pairs)
    assert f"both less likely chosen ↓ rejected ↓ {both_fell} " in text
    assert "300 rows in = 291 kept + 9 quarantined" in text
    assert manifest["git_commit"] in text
    assert "134,515,008" in text
    assert "prefine dpo recipes/dpo.yaml --set 'data.train=my pairs.jsonl'" in text
    for sample in map(json.loads, (dpo_run / "samples.jsonl").read_text(encoding="utf-8").splitlines()):
        assert sample["before"] in text
        assert sample["after"] in text


def test_samples_after_the_sixth_are_folded_and_cut_answers_marked(dpo_run: Path) -> None:
    html = write_report(dpo_run).read_text(encoding="utf-8")
    folded = html.index('<details class="more"><summary>2 more samples')
    assert html[:folded].count('<article class="sample">') == 6
    assert html[folded:].count('<article class="sample">') == 2
    assert html.count("cut at the limit</span>") == 1
    assert "The answer in the data" in html


def test_a_chosen_answer_that_falls_is_called_out(dpo_run: Path) -> None:
    assert "The chosen answers fell." in page_of(dpo_run).text
    evaluation = load(dpo_run / "evaluation.json")
    for pair in evaluation["heldout"]["pairs"]:
        pair["chosen_shift"] += 3
    evaluation["heldout"]["after"]["logp_chosen"] += 3
    (dpo_run / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    assert "The chosen answers fell." not in page_of(dpo_run).text


def test_hostile_text_stays_text(dpo_run: Path) -> None:
    said = " ".join(HOSTILE)
    turns = [{"role": said, "content": said}, {"role": "user", "content": said}]
    row = {"id": said, "category": said, "prompt": turns, "before": said, "after": said, "reference": said}
    (dpo_run / "samples.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    manifest = load(dpo_run / "manifest.json")
    manifest |= {
        "warnings": [said],
        "stage": said,
        "status": said,
        "ended_by": said,
        "started_at": said,
        "git_commit": said,
        "seed": said,
        "example": said,
        "command": [said],
        "recipe": {said: said},
        "versions": {said: said},
        "model": {"name": said},
        "device": {said: said},
        "self_checks": [{"name": said, "value": said, "rule": said, "passed": False}],
    }
    manifest["data"]["train"] |= {"reasons": {said: 1}, "files": [{"path": said, "sha256": said}]}
    (dpo_run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    page = page_of(dpo_run)
    page.assert_harmless()
    for harmless in (*HOSTILE[:6], "␀␛[2J\ufffd"):
        assert harmless in page.text
    assert "\0" not in page.text


@pytest.mark.parametrize("file", ["manifest.json", "metrics.jsonl", "evaluation.json", "samples.jsonl"])
def test_any_file_may_be_missing_and_any_may_be_alone(dpo_run: Path, tmp_path: Path, file: str) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    (dpo_run / file).rename(alone / file)
    for run in (dpo_run, alone):
        page_of(run).assert_harmless()


def test_without_an_evaluation_the_metrics_tell(dpo_run: Path) -> None:
    after = load(dpo_run / "evaluation.json")["heldout"]["after"]
    (dpo_run / "evaluation.json").unlink()
    text = page_of(dpo_run).text
    assert "in 84 % of 32 held-out pairs" in text  # 32 from the manifest
    assert f"+{after['margin']:.2f} nats" in text


def test_an_empty_run_says_so() -> None:
    page = Page(render(build_context(EMPTY)))
    assert "This run has recorded no results yet." in page.text


def test_unfinished_runs_are_marked(dpo_run: Path) -> None:
    manifest = load(dpo_run / "manifest.json") | {"status": "stopped", "ended_by": "Ctrl-C after step 12"}
    (dpo_run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    text = page_of(dpo_run).text
    assert "Not finished: the run’s status is “stopped”." in text
    assert "Ctrl-C after step 12" in text


def test_nan_and_null_are_gaps_and_are_counted(dpo_run: Path) -> None:
    rows = [json.loads(line) for line in (dpo_run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[3]["loss"], rows[4]["loss"], rows[5]["margin"], rows[6]["accuracy"] = None, float("nan"), float("inf"), "?"
    for row in rows:
        if row["kind"] == "heldout":
            row["logp_chosen"] = None
    (dpo_run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    text = page_of(dpo_run).text
    assert "2 training steps of 90 recorded no finite loss." in text
    assert not re.search(r"\bnan\b|\binf\b|None", text)


def test_counts_that_do_not_add_up_are_exposed(dpo_run: Path) -> None:
    manifest = load(dpo_run / "manifest.json")
    manifest["data"]["train"]["kept"] = 290
    (dpo_run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert "this does not add up" in page_of(dpo_run).text


def test_a_folder_without_a_run_and_a_broken_file_are_refused(tmp_path: Path, dpo_run: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run to report on"):
        write_report(tmp_path / "nothing")
    (dpo_run / "evaluation.json").write_text("[1, 2", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"evaluation\.json is not valid JSON"):
        write_report(dpo_run)


def test_long_answers_and_many_samples_do_not_swell_the_page() -> None:
    sample = {"prompt": "Why?", "before": "x" * 20_000, "after": "y"}
    html = render(build_context(dataclasses.replace(EMPTY, samples=[sample] * 500)))
    assert html.count('<article class="sample">') == 100
    assert "14,000 more characters in samples.jsonl" in html
    assert "400 more in samples.jsonl." in html


def test_samples_that_say_nothing_are_marked_as_the_metrics_count_them() -> None:
    """A zero-width space is nothing, and an answer that loops says so beside its length."""
    samples = [
        {"prompt": "Why?", "before": "\u200b \u200b", "before_degenerate": "blank", "after": "ha ha", **loops}
        for loops in ({"after_degenerate": "looping"}, {"after_degenerate": None})
    ]
    facts = dataclasses.replace(EMPTY, samples=samples)
    page = Page(render(build_context(facts)))
    assert page.text.count("nothing visible") == 2
    assert page.text.count("looping") == 2  # the mark, and the row of the table
    assert "blank, stuck or looping 100 % 50 %" in page.text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def _mangled(value: Any, draw: st.DataObject) -> Any:
    """The value with some of its parts, at any depth, replaced by anything that JSON can hold."""
    if draw.draw(st.integers(0, 7)) == 0:
        return draw.draw(VALUES)
    if isinstance(value, dict):
        return {key: _mangled(item, draw) for key, item in value.items()}
    return [_mangled(item, draw) for item in value] if isinstance(value, list) else value


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_whatever_the_files_hold_there_is_a_page(dpo_run: Path, data: st.DataObject) -> None:
    facts = read_run(dpo_run)
    evaluation = dict(facts.evaluation["heldout"])
    evaluation["pairs"] = evaluation["pairs"][:4]
    mangled = RunFacts(
        name=facts.name,
        manifest={key: _mangled(value, data) for key, value in facts.manifest.items()},
        train=[{key: _mangled(value, data) for key, value in row.items()} for row in facts.train[:3]],
        heldout=[{key: _mangled(value, data) for key, value in row.items()} for row in facts.heldout[:3]],
        evaluation={
            "heldout": _mangled(evaluation, data),
            "generation": _mangled(facts.evaluation["generation"], data),
        },
        samples=[{key: _mangled(value, data) for key, value in row.items()} for row in facts.samples[:2]],
    )
    Page(render(build_context(mangled))).assert_harmless()
