"""What the report says of runs on pairs, from facts written by hand."""

from __future__ import annotations

import pytest

from prefine.report.charts import Chart
from prefine.report.facts import RunFacts
from prefine.report.headline import headline, tiles
from prefine.report.stages.pair_charts import pair_chart, shift_points, shift_summary
from prefine.report.stages.pairs import nats
from prefine.report.stages.preference import PreferenceReport
from prefine.report.stages.registry import stage_report
from tests.report.pair_facts import AFTER, BEFORE, facts


def charts(run: RunFacts) -> list[Chart]:
    return stage_report(run).charts(run)


def test_ranking_is_compared_pair_by_pair() -> None:
    """12 of 40 pairs are ranked right that were not, and none the other way: certain, though the intervals overlap."""
    pairs = [{"before_ranked": float(i < 16), "after_ranked": float(i < 28)} for i in range(40)]
    shares_ = {"before": BEFORE | {"policy_accuracy": 0.4}, "after": AFTER | {"policy_accuracy": 0.7}, "count": 40}
    paired, alone = facts(heldout={**shares_, "pairs": pairs}), facts(heldout=shares_)
    assert "now ranks the preferred answer first in 70\u202f%, up from 40\u202f%" in headline(paired).sentence
    assert "(40\u202f% before: no change shown)" in headline(alone).sentence
    shuffled = [pair | {"after_ranked": float(12 <= i < 28)} for i, pair in enumerate(pairs)]
    worse = facts(heldout={**shares_, "pairs": shuffled, "after": AFTER | {"policy_accuracy": 0.4}})
    assert "no change shown" in headline(worse).sentence


@pytest.mark.parametrize(
    ("share", "count", "said"),
    [
        (0.8, 100, "Training moved the model towards the preferred answer in 80\u202f% of 100 held-out pairs"),
        (0.55, 100, "No move towards the preferred answers shown: 55\u202f% of 100 held-out pairs moved that way"),
        (0.2, 100, "Training moved the model away from the preferred answers: only 20\u202f% of 100"),
    ],
)
def test_a_move_that_chance_explains_is_not_called_one(share: float, count: int, said: str) -> None:
    run = facts(heldout={"after": AFTER | {"accuracy": share}, "count": count})
    assert headline(run).sentence.startswith(said)


IPO = {"stage": "dpo", "recipe": {"dpo": {"loss": "ipo", "beta": 0.5, "nll_weight": 0.0}}}


@pytest.mark.parametrize(
    ("section", "fall", "length"),
    [
        ({"loss": "sigmoid"}, "or dpo.nll_weight", "data, or set dpo.length_normalized: true and dpo.beta: 5."),
        ({"loss": {"sigmoid": 1.0, "hinge": 1.0}}, "or a weight of sft in dpo.loss", "true and dpo.beta: 5."),
        ({"loss": {"ipo": 1.0, "sft": 1.0}}, "or a larger weight of sft in dpo.loss", "training data."),
        ({"loss": "function"}, "or dpo.nll_weight", "training data."),
        ({"loss": "hinge", "length_normalized": True}, "or dpo.nll_weight", "training data."),
    ],
)
def test_advice_names_settings_that_the_recipe_accepts(section: dict[str, object], fall: str, length: str) -> None:
    run = facts(manifest={"stage": "dpo", "recipe": {"dpo": section}})
    advice = stage_report(run)
    assert isinstance(advice, PreferenceReport)
    assert advice.against_a_fall(run).endswith(fall)
    assert advice.against_length(run).endswith(length)


@pytest.mark.parametrize("loss", [[], ["ipo"], {}, None, 1, {"ipo": 1.0, "sigmoid": 1.0}])
def test_a_manifest_whose_loss_is_no_name_has_a_unit(loss: object) -> None:
    """A damaged manifest, or another version's, does not end the report."""
    assert nats(facts(manifest={"recipe": {"dpo": {"loss": loss}}})) == "nats"


def test_ipo_with_sft_is_per_token_as_ipo_is() -> None:
    both, mixed = ({"ipo": 1.0, other: 1.0} for other in ("sft", "hinge"))
    assert nats(facts(manifest={"stage": "dpo", "recipe": {"dpo": {"loss": both}}})) == "nats per token"
    assert nats(facts(manifest={"stage": "dpo", "recipe": {"dpo": {"loss": mixed}}})) == "nats"


def test_ipos_chart_counts_the_pairs_that_its_accuracy_counts() -> None:
    """Summed, the first pair's chosen answer gained less than its rejected one; per token, more."""
    shifts = [(4.0, 5.0, 10, 50), (5.0, 4.0, 50, 10), (-1.0, -2.0, 10, 10)]
    names = ("chosen_shift", "rejected_shift", "chosen_tokens", "rejected_tokens")
    pairs = [dict(zip(names, pair, strict=True)) for pair in shifts]
    per_token = facts(manifest=IPO, heldout={"pairs": pairs})
    assert shift_points(per_token) == [(0.4, 0.1), (0.1, 0.4), (-0.1, -0.2)]
    assert shift_points(facts(heldout={"pairs": pairs})) == [(4.0, 5.0), (5.0, 4.0), (-1.0, -2.0)]
    chart = pair_chart(per_token)
    assert chart is not None
    assert chart.title.startswith("2 of 3 pairs") and "nats per token" in chart.subtitle
    assert "Chosen answers moved by +0.133 nats per token" in shift_summary(per_token)
    assert charts(facts(manifest=IPO, rows=[{"step": 0, "loss": 1.0}]))[0].subtitle.endswith("= 1.000")


def test_accuracy_of_the_untrained_model_is_not_drawn() -> None:
    """Against the model as it was, all its rewards are 0: the 0 % that ties amount to would be a false start."""
    rows = [{"step": 0, "accuracy": 0.0, "margin": 0.0}, {"step": 5, "accuracy": 0.8, "margin": 0.5}]
    with_reference = charts(facts(rows=rows))[0].drawing
    assert with_reference == charts(facts(rows=rows[1:]))[0].drawing
    simpo = {"stage": "dpo", "recipe": {"dpo": {"loss": "simpo"}}}
    assert charts(facts(rows=rows, manifest=simpo))[0].drawing != with_reference


def test_without_a_reference_accuracy_is_the_models_own_ranking() -> None:
    simpo = {"stage": "dpo", "recipe": {"dpo": {"loss": "simpo"}}}
    figures = {"before": {"accuracy": 0.5}, "after": {"accuracy": 0.75}}
    run = facts(manifest=simpo, heldout=figures)
    assert headline(run).sentence.replace("\u202f", " ") == (
        "The model now ranks the preferred answer first in 75 % of 500 held-out pairs, up from 50 %."
    )


def test_shares_stand_on_scales_with_an_interval_and_on_tiles_without() -> None:
    known, unknown = facts(), facts(heldout={"count": None})
    assert [scale.label for scale in stage_report(known).scales(known)] == [
        "Moved towards the preferred answer by training",
        "Preferred answer ranked first",
    ]
    assert "Preferred answer ranked first" not in [tile.label for tile in tiles(known)]
    assert not stage_report(unknown).scales(unknown)
    assert "Preferred answer ranked first" in [tile.label for tile in tiles(unknown)]
