"""A stage's remedies name what a pipeline's file has, not options of another command."""

from __future__ import annotations

import pytest

from prefine.errors import ModelError, PrefineError
from prefine.pipeline.remedies import in_pipeline
from prefine.recipe.pipeline_stage import PipelineStage
from tests.pipeline.fake import Desk

CASES = [
    (
        "served",
        "If rounding took the change off the weights, --dtype float32 keeps it. --force keeps it, marked.",
        "If rounding took the change off the weights, stages.served.dtype: float32 keeps it. "
        "stages.served.force: true keeps it, marked.",
    ),
    ("served", "Export it with --to gguf:q4_k_m or --to merged.", "Export it with stages.served.to: gguf:q4_k_m or "),
    ("better", "Name a file with --prompts.", "Name a file with stages.better.prompts."),
    ("better", "Begin anew with --force.", "Begin anew with --force."),  # no key of this stage
    ("ppo", "Train a better one, or add --force to use it.", "or add stages.ppo.force: true to use it."),
    ("dpo", "Lower training.learning_rate; --resume continues from step 3.", "; prefine run continues from step 3."),
    ("reward", "Write --set readiness.trained_pairs=10.", "Write --set stages.reward.readiness.trained_pairs=10."),
    ("sft", "Write --set stages.sft.data.limit=3.", "Write --set stages.sft.data.limit=3."),
    ("sft", "Start over without --resume.", "Start over without --resume."),
]


@pytest.mark.parametrize(("name", "said", "expected"), CASES)
def test_options_become_keys_of_the_stage(name: str, said: str, expected: str, desk: Desk) -> None:
    assert expected in in_pipeline(said, desk.pipeline().stages[name])


def test_a_stage_that_fails_names_them(desk: Desk) -> None:
    def work(stage: PipelineStage) -> None:
        if stage.name == "served":
            raise ModelError("it keeps 0.5 of the trained change", "--dtype float32 keeps it.")

    desk.work = work
    with pytest.raises(PrefineError, match=r"stages\.served\.dtype: float32 keeps it\. What is finished is kept"):
        desk.run()
