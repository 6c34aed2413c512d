"""TensorBoard's files are read back with its own reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from prefine.recipe.sft import SftRecipe
from prefine.recipe.stage import StageRecipe
from prefine.training.tracking.tensorboard_files import TensorboardFiles
from prefine.training.tracking.tracker import TrackedRun
from tests.training import tiny
from tests.training.tracking.runs import THREE_STEPS, metrics_of, only_this_machine

Make = Callable[..., StageRecipe]


def test_tensorboard_has_figures_recipe_samples_and_histograms(make: Make) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    made = make("dpo", changes={**THREE_STEPS, "training.trackers": ["tensorboard"], "dpo.beta": 0.25})
    with only_this_machine() as attempts:
        tiny.train(made)
    assert not attempts
    run = Path(made.run)
    events = EventAccumulator(str(run / "prefine"), size_guidance={"tensors": 0}).Reload()

    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(row["step"], pytest.approx(row["loss"])) for row in metrics_of(run, "train")]
    heldout = [(event.step, event.value) for event in events.Scalars("heldout/loss")]
    assert heldout == [(row["step"], pytest.approx(row["loss"])) for row in metrics_of(run, "heldout")]

    data = plugin_data_pb2.HParamsPluginData.FromString(
        events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    )
    fields = data.session_start_info.hparams
    assert fields["dpo.beta"].number_value == 0.25
    assert fields["training.max_steps"].number_value == 3
    assert fields["stage"].string_value == "dpo"

    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    (said,) = events.Tensors("samples/1/text_summary")
    text = said.tensor_proto.string_val[0].decode()
    assert f"    user: {samples[0]['prompt'][-1]['content']}" in text
    assert "**before**" in text and "**after**" in text
    assert events.Histograms("samples/after_tokens")[0].histogram_value.num == 2
    pairs = json.loads((run / "evaluation.json").read_text())["heldout"]["pairs"]
    margins = events.Histograms("heldout_pairs/after_margin")[0].histogram_value
    assert margins.num == len(pairs)
    assert margins.sum == pytest.approx(sum(pair["after_margin"] for pair in pairs))
    assert events.Histograms("heldout_rows/margin")[-1].histogram_value.num == len(pairs)
    assert [event.step for event in events.Scalars("rolling/loss")] == [1, 2, 3]


def test_steps_that_a_resumed_run_repeats_are_shown_once(tmp_path: Path) -> None:
    """Killed after step 5, resumed after step 3."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = SftRecipe(run=str(tmp_path / "run"))
    for resumed, steps in ((False, range(1, 6)), (True, range(4, 7))):
        tracker = TensorboardFiles(TrackedRun(recipe, "sft", "1", resumed))
        for step in steps:
            tracker.log({"loss": 10.0 * resumed + step}, step)
        tracker.close(failed=not resumed)
    events = EventAccumulator(str(tmp_path / "run" / "prefine")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        *((step, step) for step in (1, 2, 3)),
        *((step, 10 + step) for step in (4, 5, 6)),
    ]
