from __future__ import annotations

from prefine.annotation.records import Answer, Item, Turn
from prefine.annotation.summary import summary
from tests.annotation.judging import judged, table


def items(count: int, characters: int) -> list[Item]:
    turns = (Turn("user", "why?"),)
    return [
        Item(i, str(i), turns, "", (Answer(f"a{i}", "x" * characters), Answer(f"b{i}", "")))
        for i in range(1, count + 1)
    ]


def test_without_votes_there_is_one_sentence() -> None:
    assert summary([], []) == ["No votes yet."]


def test_one_annotator_on_two_models() -> None:
    """The win rate is the first model's."""
    found = summary(table({"ann": "nnoo"}), items(4, 100))
    assert "2 wins, 0 ties, 2 losses" in found[0]
    assert found[0].startswith("The candidate is new, the baseline old. Judged by people, ")
    assert "the candidate wins 50" in found[0]
    assert found[1] == "Neither model is ahead after 4 labels."
    assert [sentence.split(":")[0] for sentence in found[2:]] == ["All annotators"]


def test_annotators_are_named_if_something_is_shown_of_them() -> None:
    right, wrong = "no" * 20, "on" * 20
    votes = table({"ann": right, "bob": right, "cem": right, "dan": wrong})
    votes += [
        judged(1, "ann", "new", repeat=True),
        judged(2, "ann", "old", criterion="short"),
        judged(2, "bob", "new", criterion="short"),
    ]
    found = "\n".join(summary(votes, items(40, 1_440)))  # 1,440 characters take 20 seconds, of which 15 are asked
    assert "dan: agrees with the majority on 0 of 40 items" in found
    assert "ann: agrees with the majority" not in found
    assert "All annotators: the same judgement on 1 of 1 hidden repeat" in found
    assert "short: All annotators: Krippendorff's α" in found
    assert found.count("Cohen's κ") == 6  # of four annotators each two; by criterion only of two
    assert "ann and dan: Cohen's κ = −1.00" in found
    assert "\nJudged by people, short, " in found
    assert "too fast" not in found
    hasty = [judged(i, "eve", "new", seconds=1.0) for i in range(1, 41)]
    assert "eve: too fast to have read the answers: 40 of 40 votes, 100" in "\n".join(summary(hasty, items(40, 1_440)))


def test_of_two_annotators_kappa_is_shown_by_criterion_of_more_than_four_not_at_all() -> None:
    votes = table({"ann": "no", "bob": "no"}) + [
        judged(i, who, "new" if i == 1 else "old", criterion="short") for i in (1, 2) for who in ("ann", "bob")
    ]
    found = "\n".join(summary(votes, []))
    assert "ann and bob: Cohen's κ = 1.00" in found and "short: ann and bob: Cohen's κ = 1.00" in found
    five = "\n".join(summary(table(dict.fromkeys(("ann", "bob", "cem", "dan", "eve"), "nono")), []))
    assert "Cohen's κ" not in five and "ann with the others: Krippendorff's α = 1.00" in five


def test_more_than_two_models_are_ranked_and_thumbs_compare_nothing() -> None:
    pairs = (("a", "b"), ("b", "c"), ("a", "c"))
    votes = [judged(i, "ann", pairs[i % 3][i % 2], pairs[i % 3]) for i in range(18)]
    assert [sentence[:3] for sentence in summary(votes, [])][:3] == ["1. ", "2. ", "3. "]
    thumbs = [judged(i, who, "up" if i % 2 else "down", ("a",)) for i in range(8) for who in ("ann", "bob")]
    assert summary(thumbs, [])[0].startswith("All annotators: Krippendorff's α = 1.00 (no interval)")


def test_the_win_rate_is_that_of_the_first_model_of_the_import() -> None:
    first, second = (
        summary([judged(i, "ann", "new", models) for i in range(9)], []) for models in (("new", "old"), ("old", "new"))
    )
    assert "9 wins, 0 ties, 0 losses" in first[0]
    assert "0 wins, 0 ties, 9 losses" in second[0]
