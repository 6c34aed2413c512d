"""The pipeline that is proposed: valid, with the same held-out prompts in every stage, and the same as its text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefine.advice.chooser import choose
from prefine.advice.situation import ReadingOptions, Situation
from prefine.advice.starting import Start, starting_pipeline
from prefine.errors import RecipeError
from prefine.recipe.loading import recipe_values
from prefine.recipe.pipeline import load_pipeline
from prefine.recipe.registry import RECIPES
from prefine.text_form import TextForm

PAIRS = Situation(pairs=320, longest_tokens={"preferences": 229}, sources={"preferences": ["pairs.jsonl"]})
MIXED = Situation(
    pairs=4000,
    votes=600,
    thumbs_up=500,
    demonstrations=900,
    prompts=200,
    longest_tokens={"preferences": 900, "votes": 300, "demonstrations": 100, "prompts": 50},
    longest_prompts={"prompts": 50},
    sources={kind: [f"{kind}.jsonl"] for kind in ("preferences", "votes", "demonstrations", "prompts")},
)


def start(
    situation: Situation = PAIRS, *, name: str = "desk", extra: dict[str, Any] | None = None, **options: Any
) -> Start:
    choice = choose(situation, RECIPES, **options)
    return starting_pipeline(name, "org/model", choice, situation, ["cpu: 8 GB"], extra)


@pytest.mark.parametrize("situation", [PAIRS, MIXED])
@pytest.mark.parametrize("options", [{}, {"goal": "control"}, {"goal": "imitate"}])
def test_the_text_is_the_pipeline(tmp_path: Path, situation: Situation, options: dict[str, Any]) -> None:
    begun = start(situation, **options)
    (tmp_path / "pipeline.yaml").write_text(begun.text)
    loaded = load_pipeline(tmp_path / "pipeline.yaml")
    assert {name: stage.recipe for name, stage in loaded.stages.items()} == {
        name: stage.recipe for name, stage in begun.pipeline.stages.items()
    }
    assert list(loaded.stages)[-3:] == ["better", "served", "page"]
    for sentence in choose(situation, RECIPES, **options).reasons:
        assert f"# - {sentence}" in begun.text


def test_every_stage_holds_out_the_same_prompts() -> None:
    """Which prompts are held out depends on the share and the seed."""
    stages = start(MIXED, goal="control").pipeline.stages
    data = [stage.recipe.data for stage in stages.values() if stage.trains]  # type: ignore[attr-defined]
    assert len(data) == 3
    assert len({(each.heldout_fraction, each.seed) for each in data}) == 1


@pytest.mark.parametrize(("pairs", "share"), [(100, 0.2), (1000, 0.1), (100_000, 0.05)])
def test_the_held_out_share(pairs: int, share: float) -> None:
    situation = Situation(pairs=pairs, longest_tokens={"preferences": 10}, sources={"preferences": ["a.jsonl"]})
    assert start(situation).pipeline.stages["dpo"].recipe.data.heldout_fraction == share  # type: ignore[attr-defined]


@pytest.mark.parametrize(("tokens", "length"), [(10, 256), (229, 512), (409, 512), (410, 1024), (9000, 2048)])
def test_lengths_have_room_for_other_tokenizers(tokens: int, length: int) -> None:
    situation = Situation(pairs=500, longest_tokens={"preferences": tokens}, sources={"preferences": ["a.jsonl"]})
    assert start(situation).pipeline.stages["dpo"].recipe.data.max_length_tokens == length  # type: ignore[attr-defined]


def lengths(begun: Start) -> dict[str, int]:
    return {
        name: stage.recipe.data.max_length_tokens  # type: ignore[attr-defined]
        for name, stage in begun.pipeline.stages.items()
        if stage.trains
    }


SCORED = Situation(
    prompts=500,
    reward="mine:score",
    longest_tokens={"prompts": 200},
    longest_prompts={"prompts": 200},
    sources={"prompts": ["p.jsonl"]},
)


@pytest.mark.parametrize(("tokens", "length"), [(76, 256), (77, 512), (200, 512), (281, 512), (282, 1024)])
def test_ppo_has_room_for_the_longest_prompt_and_an_answer(tokens: int, length: int) -> None:
    """1.25 * 76 + 160 = 255 and 1.25 * 281 + 160 = 511.25."""
    begun = start(replace(SCORED, longest_tokens={"prompts": tokens}, longest_prompts={"prompts": tokens}))
    recipe = begun.pipeline.stages["ppo"].recipe
    assert recipe.data.max_length_tokens == length  # type: ignore[attr-defined]
    assert recipe.rollout.max_new_tokens == 160  # type: ignore[attr-defined]
    assert 1.25 * tokens <= length - 160
    assert f"# the longest prompt has about {tokens} tokens, and answers have 160" in begun.text


def test_of_pairs_ppo_counts_the_prompts_and_the_reward_model_reads_what_ppo_writes() -> None:
    """Records of 180 tokens, of which prompts have up to 150: 225 for the pairs, and 347.5 with an answer of 160."""
    situation = replace(PAIRS, longest_tokens={"preferences": 180}, longest_prompts={"preferences": 150})
    begun = start(situation, goal="control")
    assert lengths(begun) == {"sft": 256, "reward": 512, "ppo": 512}
    assert "# as of ppo, whose prompts and answers it scores" in begun.text
    assert lengths(start(situation)) == {"sft": 256, "dpo": 256}


def test_files_that_no_stage_reads_decide_neither_the_length_nor_the_held_out_share() -> None:
    alone = Situation(
        pairs=4000,
        longest_tokens={"preferences": 300},
        longest_prompts={"preferences": 100},
        sources={"preferences": ["p.jsonl"]},
    )
    beside = replace(
        alone,
        votes=50,
        thumbs_up=25,
        longest_tokens={"preferences": 300, "votes": 5000},
        longest_prompts={"preferences": 100, "votes": 4000},
        sources={"votes": ["v.jsonl"], "preferences": ["p.jsonl"]},
    )
    for goal in ("auto", "control"):
        one, two = (
            {name: stage.recipe for name, stage in start(each, goal=goal).pipeline.stages.items() if stage.trains}
            for each in (alone, beside)
        )
        assert one == two
        assert {recipe.data.heldout_fraction for recipe in one.values()} == {0.05}  # type: ignore[attr-defined]


def test_a_model_is_not_asked_for_more_than_its_context() -> None:
    assert lengths(start(MIXED, goal="control", context=512)) == {"sft": 256, "reward": 512, "ppo": 256}
    recipe = start(SCORED, context=200).pipeline.stages["ppo"].recipe
    assert (recipe.data.max_length_tokens, recipe.rollout.max_new_tokens) == (200, 100)  # type: ignore[attr-defined]
    assert lengths(start(PAIRS, context=8192)) == lengths(start(PAIRS))


def test_without_sft_the_result_is_compared_with_the_model() -> None:
    """No vote that was read is up, so that there is nothing to imitate; later ones may be."""
    situation = Situation(votes=20_000, sources={"votes": ["v.jsonl"]}, read_in_part={"v.jsonl": 20_000})
    begun = start(situation, goal="control")
    assert list(begun.pipeline.stages) == ["reward", "ppo", "better", "served", "page"]
    assert begun.pipeline.stages["better"].recipe.against == "org/model"  # type: ignore[attr-defined]
    assert start(goal="control").pipeline.stages["better"].recipe.against == "stage:sft"  # type: ignore[attr-defined]


def test_steps_are_counted_without_the_held_out_rows() -> None:
    """300 rows, a fifth held out, 8 in a step: 240 / 8."""
    situation = Situation(pairs=300, longest_tokens={"preferences": 10}, sources={"preferences": ["a.jsonl"]})
    assert "# about 30 steps in a pass" in start(situation).text


def test_a_file_that_was_read_in_part_may_have_more_rows_and_longer_ones() -> None:
    data = {"pairs": 20_000, "longest_tokens": {"preferences": 99}, "sources": {"preferences": ["a.jsonl"]}}
    text = start(Situation(**data, read_in_part={"a.jsonl": 20_000})).text
    assert "# at least 1,188 steps in a pass" in text and "# the longest record read has about 99 tokens" in text
    assert "# - Of a.jsonl only the first 20,000 records were read" in text
    text = start(Situation(**data)).text
    assert "# about 1,188 steps in a pass" in text and "# the longest record has about 99 tokens" in text


def test_stages_begin_with_the_model_before_them(tmp_path: Path) -> None:
    begun = start(goal="control")
    models = {name: stage.recipe.model.name for name, stage in begun.pipeline.stages.items() if stage.trains}  # type: ignore[attr-defined]
    assert models == {"sft": "org/model", "reward": "stage:sft", "ppo": "stage:sft"}
    (tmp_path / "p.yaml").write_text(begun.text)
    assert recipe_values(tmp_path / "p.yaml")["stages"]["ppo"]["reward"] == {"name": "stage:reward"}


def test_settings_of_the_machine_are_in_the_stage_that_needs_them() -> None:
    begun = start(extra={"dpo": {"model.quantization": "nf4"}})
    quantised = {name: stage.recipe.model.quantization for name, stage in begun.pipeline.stages.items() if stage.trains}  # type: ignore[attr-defined]
    assert quantised == {"sft": "none", "dpo": "nf4"}


def test_line_breaks_in_a_name_cannot_add_fields(tmp_path: Path) -> None:
    situation = Situation(
        pairs=9, longest_tokens={"preferences": 9}, sources={"preferences": ["a\nfolder: elsewhere\n.jsonl"]}
    )
    begun = start(situation)
    (tmp_path / "p.yaml").write_text(begun.text)
    assert recipe_values(tmp_path / "p.yaml")["folder"] == "runs/desk"


def test_a_name_that_is_no_folder_is_refused() -> None:
    with pytest.raises(RecipeError, match="pipeline"):
        start(name="a/b")


def test_how_files_are_read_is_in_the_stages_that_read_them(tmp_path: Path) -> None:
    situation = Situation(
        pairs=900,
        demonstrations=900,
        sources={"preferences": ["p.csv"], "demonstrations": ["d.csv"]},
        options=ReadingOptions({"chosen": "a: b", "completion": "answer"}, "test", TextForm(";", "cp1252")),
        columns={"p.csv": {"chosen": "a: b"}, "d.csv": {"completion": "answer"}},
    )
    (tmp_path / "p.yaml").write_text(start(situation).text)
    stages = load_pipeline(tmp_path / "p.yaml").stages
    data = {name: stages[name].recipe.data for name in ("sft", "dpo")}  # type: ignore[attr-defined]
    assert data["sft"].columns == {"completion": "answer"} and data["dpo"].columns == {"chosen": "a: b"}
    assert {(each.split, each.delimiter, each.encoding) for each in data.values()} == {("test", ";", "cp1252")}
    assert "split" not in start().text and "columns" not in start().text
