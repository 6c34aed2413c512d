"""Reward runs on T: what they learn from pairs, ties, margins and votes, what they save, and what they refuse."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefine.data.tokens.store import TokenStore
from prefine.errors import DataError, RecipeError
from prefine.models.scoring.packed_scorer import load_reward
from prefine.models.scoring.scorer import Question
from prefine.recipe.reward import RewardRecipe, RewardSection
from prefine.recipe.sections import ModelSection
from prefine.recipe.stage import StageRecipe
from prefine.records import Message
from prefine.report.facts import read_run
from prefine.report.headline import headline
from prefine.training.run.checks import check_scores
from prefine.training.stages.reward import Labels, margins, mean_score_difference, row_losses
from tests.training import tiny

Make = Callable[..., StageRecipe]
LEARNING = {"lora.dropout": 0.0, "training.epochs": 6, "training.save_every_steps": None}


def readiness(made: StageRecipe) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(made.run) / "readiness.json").read_text())
    return found


def finding(made: StageRecipe, name: str) -> dict[str, Any]:
    (found,) = [each for each in readiness(made)["findings"] if each["name"] == name]
    assert isinstance(found, dict)
    return found


# --- The loss ----------------------------------------------------------------------------------------------------


def raw(*scores: tuple[float, float]) -> torch.Tensor:
    """(pairs, 2, 1) raw scores."""
    return torch.tensor(scores)[..., None]


def labels(section: RewardSection, *records: dict[str, Any]) -> Labels:
    return Labels.of([{"tie": False, "margin": None, **record} for record in records], section)


def test_equal_scores_cost_ln_2_for_plain_pairs_and_ties() -> None:
    section = RewardSection(centring_weight=0.0)
    losses = row_losses(raw((1.5, 1.5), (0.0, 0.0)), labels(section, {}, {"tie": True}), section)
    assert losses.tolist() == [[pytest.approx(math.log(2))], [pytest.approx(math.log(2))]]


def test_a_margin_asks_for_that_much_more_and_a_tie_for_none() -> None:
    """σ(3 - 2 - 1) = 1/2."""
    section = RewardSection(centring_weight=0.0, margin_scale=0.5)
    told = labels(section, {"margin": 2.0}, {"margin": 2.0, "tie": True})
    assert told.wanted.tolist() == [1.0, 0.0]
    losses = row_losses(raw((3.0, 2.0), (0.0, 0.0)), told, section)
    assert losses[:, 0].tolist() == pytest.approx([math.log(2), math.log(2)])
    without = RewardSection(margins="none")
    assert labels(without, {"margin": 2.0}).wanted.tolist() == [0.0]


def test_scores_of_any_scale_are_a_margin_only_when_asked_and_then_one_on_average() -> None:
    """8.5 against 3 does not ask for 5.5 nats: differences of 5.5, 0.5 and 3 have a mean of 3."""
    pairs = [{"score_difference": difference} for difference in (5.5, 0.5, 3.0)]
    assert labels(RewardSection(), *pairs).wanted.tolist() == [0.0, 0.0, 0.0]
    others = [{"score_difference": 60.0, "tie": True}, {"score_difference": 60.0, "margin": 0.25}]
    stored = [{"tie": False, "margin": None, **pair} for pair in (*pairs, *others)]
    mean = mean_score_difference(stored)
    assert mean == pytest.approx(3.0)
    section = RewardSection(margins="scores", margin_scale=0.5)
    wanted = Labels.of(stored, section, mean).wanted.tolist()
    assert wanted == pytest.approx([0.5 * 5.5 / 3, 0.5 * 0.5 / 3, 0.5, 0.0, 0.5 * 0.25])
    in_hundreds = [{**pair, "score_difference": 100 * pair["score_difference"]} for pair in stored]
    again = Labels.of(in_hundreds, section, mean_score_difference(in_hundreds) or 1.0).wanted.tolist()
    assert again == pytest.approx(wanted)
    assert mean_score_difference([{"tie": False, "margin": 1.0}]) is None


def test_scores_are_told_and_used_only_where_the_recipe_says_so(make: Make, tmp_path: Path) -> None:
    rows = [{**row, "chosen_score": 8.5, "rejected_score": 3} for row in tiny.pairs(40)]
    data = str(tiny.write_rows(tmp_path / "scored.jsonl", rows))
    once = {"data.train": data, "training.max_steps": 1}
    said = tiny.train(make("reward", "without", once))
    assert "40 pairs have scores; their differences are used as margins only with reward.margins" in said
    said = tiny.train(make("reward", "with", {**once, "reward.margins": "scores"}))
    assert "margins: a score difference of 5.5, the average, asks for a margin of 1 nats" in said
    with pytest.raises(DataError, match=r"reward\.margins is scores, but no pair of data\.train has scores"):
        tiny.train(make("reward", "none", {"reward.margins": "scores"}))


def test_smoothing_leaves_a_tie_a_tie() -> None:
    section = RewardSection(label_smoothing=0.1, centring_weight=0.0)
    margin = math.log(3)
    losses = row_losses(raw((margin, 0.0), (margin, 0.0)), labels(section, {}, {"tie": True}), section)
    plain, flipped = math.log(4 / 3), math.log(4)
    assert losses[:, 0].tolist() == pytest.approx([0.9 * plain + 0.1 * flipped, (plain + flipped) / 2])


def test_centring_is_added_and_hinge_replaces_the_logarithm() -> None:
    section = RewardSection(loss="hinge", centring_weight=0.5)
    losses = row_losses(raw((0.4, 0.2)), labels(section, {}), section)
    assert losses.item() == pytest.approx((1 - 0.2) + 0.5 * 0.6**2)


def test_votes_are_judged_alone() -> None:
    section = RewardSection()
    told = Labels.of([{"label": True}, {"label": False}], section)
    scores = torch.tensor([[[1.0]], [[1.0]]])
    up, down = row_losses(scores, told, section)[:, 0].tolist()
    assert up == pytest.approx(math.log(1 + math.exp(-1)))
    assert down == pytest.approx(math.log(1 + math.exp(1)))
    assert margins(scores, told).tolist() == [1.0, -1.0]


# --- Runs --------------------------------------------------------------------------------------------------------


def test_a_run_learns_what_people_prefer_and_saves_what_it_scores(make: Make) -> None:
    """The mean held-out score is 0 after the bias, and the saved std is theirs."""
    made = make("reward", changes=LEARNING)
    said = tiny.train(made)
    heldout = json.loads((Path(made.run) / "evaluation.json").read_text())["heldout"]
    assert heldout["after"]["accuracy"] == 1.0
    assert heldout["after"]["loss"] < heldout["before"]["loss"]
    assert "readiness for PPO" in said
    assert tiny.manifest(Path(made.run))["readiness"] == readiness(made)["verdict"]
    assert all(check["passed"] for check in tiny.manifest(Path(made.run))["self_checks"])

    assert readiness(made)["model"] == made.run
    pairs = readiness(made)["pairs"]
    scores = [pair[f"{side}_score"] for pair in pairs for side in ("chosen", "rejected")]
    assert sum(scores) / len(scores) == pytest.approx(0, abs=1e-5)
    scale = json.loads((Path(made.run) / "model" / "reward.json").read_text())
    assert scale["std"] == pytest.approx(torch.tensor(scores).std().item(), rel=1e-4)
    assert scale["answers"] == len(scores) == 2 * heldout["count"]


def test_the_split_into_microbatches_changes_nothing(make: Make) -> None:
    """Pairs in steps of 4, all at once and one by one; the last step of an epoch is ragged."""
    changes = {"lora.dropout": 0.0, "reward.heads": 3, "training.learning_rate": 1e-3, "training.keep_best": False}
    runs = {}
    for budget in (16, 100_000):
        made = make("reward", f"{budget}", {**changes, "training.max_tokens_per_microbatch": budget})
        tiny.train(made)
        runs[budget] = tiny.weights(Path(made.run))
    assert runs[16]
    for name, weight in runs[16].items():
        torch.testing.assert_close(runs[100_000][name], weight, rtol=0, atol=2e-5, msg=name)


def test_heads_leave_out_their_own_parts_and_differ(make: Make) -> None:
    made = make("reward", changes={**LEARNING, "reward.heads": 3})
    tiny.train(made)
    scale = json.loads((Path(made.run) / "model" / "reward.json").read_text())
    assert len(set(scale["bias"])) == 3
    pairs = readiness(made)["pairs"]
    assert all(pair["disagreement"] > 0 for pair in pairs)


def test_ties_are_learned_from_as_ties(make: Make, tmp_path: Path) -> None:
    """Pairs that nobody could decide pull their scores together; they do not count in the accuracy."""
    rows = [{**row, "preferred": 0} for row in tiny.pairs(40)]
    for row in rows:
        row["response_1"], row["response_2"] = row.pop("chosen"), row.pop("rejected")
    decided = [{**row, "prompt": f"decided {row['prompt']}"} for row in tiny.pairs(8)]
    data = tiny.write_rows(tmp_path / "ties.jsonl", [*rows, *decided])
    made = make("reward", changes={**LEARNING, "data.train": str(data), "data.heldout_fraction": 0.4})
    tiny.train(made)
    assert tiny.manifest(Path(made.run))["data"]["train"]["dropped_unusable"] == 0
    heldout = json.loads((Path(made.run) / "evaluation.json").read_text())["heldout"]
    stored = TokenStore(Path(made.run) / "data" / "heldout.arrow")
    ties = sum(json.loads(stored.record_json(row))["tie"] for row in range(len(stored)))
    assert ties > 0
    assert len(readiness(made)["pairs"]) == heldout["count"] == len(stored) - ties  # ties are not ranked


def test_votes_teach_a_score_and_are_judged_as_pairs(make: Make, tmp_path: Path) -> None:
    votes = [
        {"prompt": row["prompt"], "completion": row["chosen" if up else "rejected"], "label": up}
        for number, row in enumerate(tiny.pairs(60))
        for up in [number % 2 == 0]
    ]
    data = tiny.write_rows(tmp_path / "votes.jsonl", votes)
    made = make("reward", changes={**LEARNING, "data.train": str(data), "data.heldout_fraction": 0.3})
    tiny.train(made)
    heldout = json.loads((Path(made.run) / "evaluation.json").read_text())["heldout"]
    assert heldout["after"]["accuracy"] > 0.9
    judged = readiness(made)
    assert judged["accuracy"]["value"] > 0.9
    assert 0 < len(judged["pairs"]) <= heldout["count"] // 2
    assert "now agrees with people on" in headline(read_run(Path(made.run))).sentence


def test_swapped_columns_are_called_what_they_are(make: Make, tmp_path: Path) -> None:
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in tiny.pairs(30, seed=5)]
    data = tiny.write_rows(tmp_path / "swapped.jsonl", swapped)
    made = make(
        "reward",
        changes={
            **LEARNING,
            "data.heldout": str(data),
            "training.early_stopping_patience": None,
            "training.keep_best": False,
        },
    )
    said = tiny.train(made)
    assert finding(made, "held-out accuracy")["level"] == "no-go"
    assert re.search(r"no-go: held-out accuracy: 0\s% of", said)
    assert "Are the columns chosen and rejected swapped" in said
    assert any("swapped" in warning for warning in tiny.manifest(Path(made.run))["warnings"])


def flipped_rows(count: int, share: float) -> tuple[list[dict[str, Any]], set[str]]:
    draw = random.Random(3)
    rows, flipped = [], set()
    for number, pair in enumerate(tiny.pairs(count)):
        row = {**pair, "id": f"p{number}"}
        if draw.random() < share:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
            flipped.add(f"p{number}")
        rows.append(row)
    return rows, flipped


def test_flipped_labels_are_found_again(make: Make, tmp_path: Path) -> None:
    """A fifth of 120 labels is flipped: most of them are listed, and little else, among trained pairs too."""
    rows, flipped = flipped_rows(120, 0.2)
    data = tiny.write_rows(tmp_path / "flipped.jsonl", rows)
    changes = {**LEARNING, "data.train": str(data), "reward.heads": 4, "training.epochs": 3}
    made = make("reward", changes={**changes, "training.learning_rate": 3e-3})
    tiny.train(made)
    listed = {suspect["id"]: suspect for suspect in readiness(made)["suspects"]}
    found = listed.keys() & flipped
    assert len(found) / len(flipped) > 0.6
    assert len(found) / len(listed) > 0.8
    assert any(listed[name]["trained_on"] for name in found)
    assert finding(made, "labels that look flipped")["level"] == "caution"


def by_length(count: int, *, longer_wins: bool) -> list[dict[str, Any]]:
    """Pairs of one vocabulary; the longer answer wins always, or (a marked one wins) as often as not."""
    draw = random.Random(1)
    rows = []
    for number in range(count):
        short, long = draw.randrange(2, 8), draw.randrange(12, 22)
        lengths = (long, short) if longer_wins or number % 2 else (short, long)
        texts = [" ".join(draw.choice(["ab", "cd", "ef"]) for _ in range(length)) for length in lengths]
        marks = ("", "") if longer_wins else ("xyz ", "")
        rows.append({"prompt": f"q {number}", "chosen": marks[0] + texts[0], "rejected": marks[1] + texts[1]})
    return rows


def test_a_set_where_the_longer_answer_always_wins_is_called_out_and_a_balanced_one_is_not(
    make: Make, tmp_path: Path
) -> None:
    findings = {}
    for longer_wins in (True, False):
        data = tiny.write_rows(tmp_path / f"{longer_wins}.jsonl", by_length(80, longer_wins=longer_wins))
        made = make("reward", f"{longer_wins}", {**LEARNING, "data.train": str(data), "data.heldout_fraction": 0.3})
        tiny.train(made)
        assert readiness(made)["accuracy"]["value"] > 0.9
        findings[longer_wins] = {
            name: finding(made, name)["level"]
            for name in ("pairs whose shorter answer was preferred", "prefers the longer answer")
        }
    assert findings[True]["pairs whose shorter answer was preferred"] == "caution"
    assert set(findings[False].values()) == {"go"}


def test_longer_always_wins_in_training_but_not_for_people_is_a_no_go(make: Make, tmp_path: Path) -> None:
    train = tiny.write_rows(tmp_path / "train.jsonl", by_length(80, longer_wins=True))
    rows = [{**row, "prompt": f"new {row['prompt']}"} for row in by_length(40, longer_wins=True)]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[::2]]
    heldout = tiny.write_rows(tmp_path / "heldout.jsonl", [*swapped, *rows[1::2]])
    changes = {**LEARNING, "data.train": str(train), "data.heldout": str(heldout), "training.keep_best": False}
    made = make("reward", changes={**changes, "training.early_stopping_patience": None})
    tiny.train(made)
    assert finding(made, "pairs whose shorter answer was preferred")["level"] == "no-go"
    assert finding(made, "prefers the longer answer")["level"] == "caution"


def test_a_reloaded_run_scores_as_the_trained_model_did(make: Make) -> None:
    made = make("reward", changes=LEARNING)
    tiny.train(made)
    reward = load_reward(ModelSection(name=made.run, dtype="float32", device="cpu"))
    stored = TokenStore(Path(made.run) / "data" / "heldout.arrow")
    records = [json.loads(stored.record_json(row)) for row in range(len(stored))]
    questions = [
        Question(tuple(Message(**m) for m in record["prompt"]), (record["chosen"], record["rejected"]))
        for record in records
    ]
    scores = [[each.score for each in found] for found in reward.score(questions) if found]
    told = [[pair["chosen_score"], pair["rejected_score"]] for pair in readiness(made)["pairs"]]
    assert torch.tensor(scores) == pytest.approx(torch.tensor(told), abs=1e-5)


# --- What is refused ---------------------------------------------------------------------------------------------


def refused(made: StageRecipe) -> str:
    with pytest.raises(DataError) as error:
        tiny.train(made)
    return str(error.value)


def test_votes_of_one_kind_are_refused(make: Make, tmp_path: Path) -> None:
    votes = [{"prompt": f"q{n}", "completion": f"a{n}", "label": True} for n in range(30)]
    data = tiny.write_rows(tmp_path / "votes.jsonl", votes)
    told = refused(make("reward", changes={"data.train": str(data)}))
    assert "votes are up" in told
    assert "both kinds" in told


def test_settings_of_pairs_are_refused_for_votes(make: Make, tmp_path: Path) -> None:
    votes = [{"prompt": f"q{n}", "completion": f"a{n}", "label": n % 2 == 0} for n in range(30)]
    data = tiny.write_rows(tmp_path / "votes.jsonl", votes)
    made = make("reward", changes={"data.train": str(data), "reward.loss": "hinge", "reward.margin_scale": 2.0})
    with pytest.raises(RecipeError) as error:
        tiny.train(made)
    assert 'reward.loss "hinge" has no effect, as the data are votes' in str(error.value)
    assert "reward.margin_scale 2.0" in str(error.value)


def test_a_scale_of_margins_that_are_not_used_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reward\.margin_scale 3\.0 has no effect, as reward\.margins is none"):
        RewardRecipe.model_validate({"reward": {"margins": "none", "margin_scale": 3.0}})


@pytest.mark.parametrize("fraction", [0.2, 0.0])
def test_a_single_prompt_leaves_nothing_to_judge_by(fraction: float, make: Make, tmp_path: Path) -> None:
    """Whichever side of the split the one prompt falls on."""
    rows = [{**row, "prompt": "the only question"} for row in tiny.pairs(30)]
    data = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    told = refused(make("reward", changes={"data.train": str(data), "data.heldout_fraction": fraction}))
    assert "held out" in told or "held-out" in told
    assert "more prompts" in told or "data.heldout" in told


def test_demonstrations_are_refused(make: Make, tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(10)]
    told = refused(make("reward", changes={"data.train": str(tiny.write_rows(tmp_path / "rows.jsonl", rows))}))
    assert "holds demonstrations" in told
    assert "preferences, or from votes" in told


def test_equal_texts_and_margins_that_are_no_numbers_go_to_quarantine(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = "".join(json.dumps(row) + "\n" for row in tiny.pairs(30))
    bad = '{"prompt": "q", "chosen": "same", "rejected": "same"}\n'
    bad += '{"prompt": "q", "chosen": "a", "rejected": "b", "margin": NaN}\n'
    bad += '{"prompt": "q", "chosen": "c", "rejected": "d", "margin": -1}\n'
    path.write_text(bad + good)
    made = make("reward", changes={"data.train": str(path), "training.max_steps": 2})
    tiny.train(made)
    refusals = [json.loads(line) for line in (Path(made.run) / "quarantine.jsonl").read_text().splitlines()]
    assert [row["line"] for row in refusals] == [1, 2, 3]
    counts = tiny.manifest(Path(made.run))["data"]["train"]
    assert counts["rows_in"] == counts["kept"] + counts["quarantined"] == 33


def test_the_self_check_notices_a_score_that_depends_on_others() -> None:
    """Rounding of 1e-6 (float32) allows 4e-6, of 0.02 (bfloat16) 0.08; and 4 * 3 * 1.2e-7 for scores of size 3."""
    together = torch.tensor([[0.0], [1.0], [3.0]])
    assert check_scores(together + 4e-6, together, 1e-6).passed
    assert not check_scores(together + 1e-5, together, 1e-6).passed
    assert check_scores(together + 0.07, together, 0.02).passed
    assert not check_scores(together + 0.09, together, 0.02).passed
    assert check_scores(together + 1e-6, together, 0.0).passed
    assert not check_scores(together + 2.5e-6, together, 0.0).passed


def test_the_readiness_report_scores_again_no_more_rows_than_the_recipe_says(make: Make) -> None:
    """A log says how many rows that pass has before it begins."""
    changes = {"training.max_steps": 1, "readiness.heldout_pairs": 3, "readiness.trained_pairs": 5}
    made = make("reward", changes=changes)
    said = tiny.train(made)
    told, store = readiness(made), TokenStore(Path(made.run) / "data" / "heldout.arrow")
    assert (len(told["pairs"]), told["looked_at"], told["accuracy"]["count"]) == (3, 8, 3)
    assert f"3 of {len(store)} held-out rows (readiness.heldout_pairs), 5 of " in told["scope"]
    assert "readiness report: 14 rows" in said  # 3 + 5, 3 answers made worse, 3 things that must not matter
