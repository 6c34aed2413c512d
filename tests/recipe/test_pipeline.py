"""A pipeline's file becomes a checked graph of stages, or one line says everything that is wrong with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from prefine.errors import RecipeError
from prefine.recipe.pipeline import Pipeline, load_pipeline, runs_of
from prefine.recipe.pipeline_stage import METHODS
from prefine.recipe.registry import RECIPES
from prefine.recipe.rl import PpoRecipe

STAGES: dict[str, dict[str, Any]] = {
    "better": {"method": "evaluate", "candidate": "stage:dpo", "against": "stage:sft", "gate": "gate.yaml"},
    "served": {"method": "export", "model": "stage:dpo", "to": ["merged", "gguf:q4_k_m"]},
    "raw": {"method": "export", "model": "stage:sft"},
    "ppo": {"method": "ppo", "model": {"name": "stage:sft"}, "reward": {"name": "stage:reward"}},
    "dpo": {"method": "dpo", "model": {"name": "stage:sft"}, "dpo": {"loss": "ipo"}},
    "reward": {"method": "reward", "model": {"name": "stage:sft"}},
    "sft": {"method": "sft", "model": {"name": "embedded:smollm2-135m"}, "training": {"max_steps": 3}},
    "all": {"method": "report"},
}


def load(tmp_path: Path, *overrides: str, stages: dict[str, Any] = STAGES, **fields: Any) -> Pipeline:
    file = tmp_path / "p.yaml"
    file.write_text(yaml.safe_dump({"pipeline": "desk", **fields, "stages": stages}, sort_keys=False))
    return load_pipeline(file, overrides)


def refused(tmp_path: Path, *overrides: str, **given: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, *overrides, **given)
    return "\n".join(caught.value.lines).replace(str(tmp_path / "p.yaml"), "FILE")


@pytest.mark.parametrize(
    ("file", "name"), [("sweep.yaml", "sweep"), ("my first try.yaml", "my-first-try"), ("é.yaml", "pipeline")]
)
def test_a_pipeline_without_a_name_has_that_of_its_file(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_text(yaml.safe_dump({"stages": STAGES}))
    pipeline = load_pipeline(tmp_path / file)
    assert (pipeline.name, pipeline.folder) == (name, Path("runs", name))


def test_stages_are_ordered_by_what_they_name(tmp_path: Path) -> None:
    pipeline = load(tmp_path)
    assert list(pipeline.stages) == ["sft", "dpo", "better", "served", "raw", "reward", "ppo", "all"]
    assert pipeline.stages["ppo"].parents == ("sft", "reward")
    assert set(pipeline.stages["all"].parents) == {"sft", "dpo", "reward", "ppo"}
    assert pipeline.descendants("reward") == ["ppo", "all"]
    assert pipeline.descendants("dpo") == ["better", "served", "all"]


def test_an_export_waits_for_the_gate_of_its_own_model_only(tmp_path: Path) -> None:
    pipeline = load(tmp_path)
    assert pipeline.stages["served"].parents == ("dpo", "better")
    assert pipeline.stages["raw"].parents == ("sft",)
    without = load(tmp_path, "stages.better.gate=null")
    assert without.stages["served"].parents == ("dpo",)


def test_names_of_stages_become_folders_or_the_models_that_training_begins_with(tmp_path: Path) -> None:
    pipeline = load(tmp_path, folder="there")
    placed = pipeline.in_place("ppo")
    assert isinstance(placed, PpoRecipe)
    assert (placed.run, placed.model.name, placed.reward.name) == ("there/ppo", "there/sft", "there/reward")
    first = pipeline.with_first_models("ppo")
    assert isinstance(first, PpoRecipe) and first.model.name == "embedded:smollm2-135m"
    dpo = pipeline.in_place("dpo")
    assert dpo == METHODS["dpo"].model_validate(
        {"run": "there/dpo", "model": {"name": "there/sft"}, "dpo": {"loss": "ipo"}}
    )


def test_overrides_reach_the_pipeline_and_its_stages(tmp_path: Path) -> None:
    method = ("stages.reward.method=sft", "stages.ppo.reward.name=module:function")
    pipeline = load(tmp_path, "folder=elsewhere", "stages.sft.training.max_steps=5", *method)
    assert pipeline.folder == Path("elsewhere")
    assert pipeline.stages["reward"].method == "sft"
    assert pipeline.stages["sft"].recipe.training.max_steps == 5  # type: ignore[attr-defined]


def test_a_stage_starts_from_a_recipe_file_which_its_own_fields_override(tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"
    file.write_text("run: runs/other\nmodel: {name: tiny, dtype: float32}\ntraining: {max_steps: 7, batch_size: 2}\n")
    stage = {"method": "sft", "recipe": str(file), "training": {"max_steps": 9}, "model": {"name": "small"}}
    pipeline = load(tmp_path, "stages.sft.training.seed=4", stages={"sft": stage})
    recipe = pipeline.stages["sft"].recipe
    assert isinstance(recipe, RECIPES["sft"])
    assert (recipe.run, recipe.model.name, recipe.model.dtype) == ("runs/desk/sft", "small", "float32")
    assert (recipe.training.max_steps, recipe.training.batch_size, recipe.training.seed) == (9, 2, 4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages.sft.training.max_stepz=5",
            "--set stages.sft.training.max_stepz=5: training.max_stepz is not a field. "
            "Did you mean training.max_steps?",
        ),
        (
            "stages.dpo.model.name=stage:stf",
            "FILE: stages.dpo: model.name is stage:stf, but there is no such stage. Did you mean stage:sft?",
        ),
        (
            "stages.sft.model.name=stage:dpo",
            "FILE: stages wait for each other: dpo → sft → dpo (each names the next one). "
            "Remove stage:dpo from one of them.",
        ),
        (
            "stages.ppo.reward.name=stage:sft",
            "FILE: stages.ppo: reward.name is stage:sft, whose method is sft. Name a stage of method reward.",
        ),
        ("stages.ppo.method=pp", '--set stages.ppo.method=pp: method is "pp", which is none. Did you mean ppo?'),
        ("stages.pppo.x=3", "--set stages.pppo.x=3: there is no stage 'pppo'. Did you mean ppo?"),
        (
            "stages.sft.data.train=stage:dpo",
            "FILE: stages.sft: data.train is stage:dpo, but this field does not name a model or a run. "
            "Write another value.",
        ),
        (
            "stages.sft.run=x",
            'FILE: stages.sft: run is "x", but a stage\'s folder is runs/desk/sft. '
            "Leave run out, or change the pipeline's folder.",
        ),
        (
            "stages.sft.lora.r=abc",
            '--set stages.sft.lora.r=abc: lora.r is "abc", but must be a valid integer. '
            "Write a whole number, without quotes.",
        ),
        (
            "stages.served.model=stage:better",
            "FILE: stages.served: model is stage:better, whose method is evaluate. Name a stage that trains.",
        ),
        (
            "stages.better.judge=http://127.0.0.1:8000/v1",
            "FILE: stages.better: judge_model is missing: a judge has an endpoint, judge, and a name there, "
            "judge_model. Change one of the fields it names.",
        ),
        (
            "stages.served.to=[merged, merged]",
            "FILE: stages.served: to names 'merged' twice; name each format once. Change one of the fields it names.",
        ),
        (
            "stages.sft.recipe=nix.yaml",
            "FILE: stages.sft: recipe: There is no recipe nix.yaml. Check the path.",
        ),
        ("pipelin=x", "FILE: pipelin is not a field. Did you mean pipeline?"),
    ],
)
def test_a_mistake_is_named_with_its_stage_field_value_rule_and_remedy(
    tmp_path: Path, override: str, message: str
) -> None:
    assert refused(tmp_path, override) == message


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    lines = refused(tmp_path, "stages.sft.model.name=3", "stages.dpo.dpo.beta=-1", "stages.raw.model=stage:no")
    assert lines.splitlines()[0] == "3 settings are not valid:"
    assert all(name in lines for name in ("model.name", "dpo.beta", "stage:no"))


def test_required_fields_and_methods_are_asked_for(tmp_path: Path) -> None:
    assert refused(tmp_path, stages={"better": {"method": "evaluate"}}) == (
        "FILE: stages.better: candidate is missing. "
        "Write it in the recipe, or pass --set stages.better.candidate=VALUE."
    )
    assert refused(tmp_path, stages={"better": {}}).startswith(
        "FILE: stages.better: method is missing. Write one of sft, "
    )


def test_runs_outside_of_the_pipeline_are_not_taken_by_default(tmp_path: Path) -> None:
    """PPO's recipe names runs/sft and runs/reward by default."""
    assert refused(tmp_path, stages={"ppo": {"method": "ppo"}}) == (
        "FILE: stages.ppo: model.name is missing. Write stage:NAME, or the name of a model."
    )
    stage = {"method": "ppo", "model": {"name": "runs/sft"}}
    assert "reward.name is missing" in refused(tmp_path, stages={"ppo": stage})
    named = {**stage, "reward": {"name": "runs/reward"}}
    assert load(tmp_path, stages={"ppo": named}).stages["ppo"].parents == ()


def test_two_stages_never_share_a_folder(tmp_path: Path) -> None:
    stages = {"sft": STAGES["sft"], "SFT": STAGES["sft"]}
    assert (
        refused(tmp_path, stages=stages) == "FILE: stages.SFT and stages.sft differ only in case. Rename one of them."
    )
    assert "stages.../sft" in refused(tmp_path, stages={"../sft": STAGES["sft"]})


def test_a_recipe_of_one_stage_is_no_pipeline(tmp_path: Path) -> None:
    file = tmp_path / "sft.yaml"
    file.write_text("run: runs/sft\n")
    with pytest.raises(RecipeError, match="has no stages: it is not a pipeline"):
        load_pipeline(file)


def test_a_report_compares_all_runs_unless_it_names_some(tmp_path: Path) -> None:
    pipeline = load(tmp_path)
    report = pipeline.stages["all"].recipe
    assert runs_of(report, pipeline) == ["stage:sft", "stage:dpo", "stage:reward", "stage:ppo"]  # type: ignore[arg-type]
    some = load(tmp_path, "stages.all.runs=[stage:dpo, runs/old]")
    assert some.stages["all"].parents == ("dpo",)
    assert runs_of(some.stages["all"].recipe, some) == ["stage:dpo", "runs/old"]  # type: ignore[arg-type]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_a_stage(tmp_path: Path, method: str) -> None:
    others: dict[str, dict[str, Any]] = {
        "evaluate": {"candidate": "stage:sft"},
        "export": {"model": "stage:sft"},
        "report": {"runs": "stage:sft"},
        "ppo": {"model": {"name": "stage:sft"}, "reward": {"name": "module:function"}},
    }
    fields = others.get(method, {"model": {"name": "stage:sft"}})
    stages = {"sft": STAGES["sft"], "other": {"method": method, **fields}}
    pipeline = load(tmp_path, stages=stages)
    assert pipeline.stages["other"].parents == ("sft",)
    assert pipeline.stages["other"].trains == (method in RECIPES)
