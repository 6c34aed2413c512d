"""Figures of answers, against values worked by hand and published examples."""

from __future__ import annotations

import pytest

from prefine.comparisons import measures


def test_distinct_words_of_an_answer() -> None:
    """a b a b: 2 of 4 words, 2 of 3 pairs (ab, ba, ab) are different."""
    assert measures.distinct_share("a b a b", 1) == pytest.approx(2 / 4)
    assert measures.distinct_share("a b a b", 2) == pytest.approx(2 / 3)
    assert measures.distinct_share("a", 2) is None
    assert measures.words("Don't — 日本 x!") == ["Don", "'", "t", "—", "日本", "x", "!"]


def test_degenerate_answers_without_tokens() -> None:
    assert measures.degenerate_word(" \n", None) == "blank"
    assert measures.degenerate_word("no " * 9, None) == "stuck"
    assert measures.degenerate_word("one two three four " * 6, None) == "looping"
    assert measures.degenerate_word("A plain answer.", None) is None
    assert measures.degenerate_word("A plain answer.", [5] * 8) == "stuck"


def test_self_bleu_is_high_where_answers_are_alike() -> None:
    pytest.importorskip("sacrebleu")
    same = measures.self_bleu(["the cat sat on the mat"] * 3, [0, 1, 2])
    other = measures.self_bleu(
        ["the cat sat on the mat", "dogs bark loudly at night here", "", "we ship on monday morning"], [0, 1, 2, 3]
    )
    assert same == pytest.approx([100.0] * 3)
    assert other[2] is None
    assert all(value is not None and value < 10 for place, value in enumerate(other) if place != 2)
    assert measures.self_bleu(["alone", ""], [0, 1]) == [None, None]


def test_self_bleu_is_of_answers_to_other_prompts() -> None:
    """Two equal answers to one prompt are no sign that answers to all prompts are alike."""
    pytest.importorskip("sacrebleu")
    found = measures.self_bleu(["the cat sat on the mat"] * 2 + ["dogs bark loudly at night here"], [0, 0, 1])
    assert all(value is not None and value < 10 for value in found)
    assert measures.self_bleu(["alike", "alike"], [0, 0]) == [None, None]


def test_rouge_is_that_of_its_papers_example() -> None:
    """Lin 2004, section 3.1: "police killed the gunman" against "police kill the gunman" has ROUGE-L 3/4; and against
    "the gunman kill police" 2/4. (Without the stemmer; with it, kill and killed are the same word.)
    """
    pytest.importorskip("rouge_score")
    found = measures.overlap("the gunman shot police", "police killed the gunman")
    assert found["rouge_l"] == pytest.approx(2 / 4)
    assert found["rouge_1"] == pytest.approx(3 / 4)
    assert found["rouge_2"] == pytest.approx(1 / 3)
    assert measures.overlap("police kill the gunman", "police killed the gunman")["rouge_l"] == 1


def test_bleu_and_chrf_are_those_of_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    text, reference = "The dog bit the man.", "The dog bit the big man."
    found = measures.overlap(text, reference)
    assert found["bleu"] == pytest.approx(sacrebleu.sentence_bleu(text, [reference]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.sentence_chrf(text, [reference]).score)
    assert measures.overlap(reference, reference)["bleu"] == pytest.approx(100)


def test_a_reference_in_another_script_has_no_rouge() -> None:
    pytest.importorskip("sacrebleu")
    found = measures.overlap("今日は晴れです", "今日は雨です")
    assert not {name for name in found if name.startswith("rouge")}
    assert found["chrf"] > 0


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert measures.why_missing("bleu") == "sacrebleu is not installed: pip install 'prefine[evaluate]'"
    assert measures.overlap("a", "a") == {}
