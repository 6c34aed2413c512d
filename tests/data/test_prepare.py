"""A recipe's data becomes two stores that share no prompt, once, with every record accounted for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefine.data.prepare import Preparation, Prepared
from prefine.data.reading.quarantine import Quarantine
from prefine.data.reading.source_names import source_names
from prefine.data.records.selection import group_of, prompt_group
from prefine.data.tokens.store import TokenStore
from prefine.data.tokens.template import ChatTemplate
from prefine.errors import CheckpointError, DataError
from prefine.recipe.sections import DataSection
from prefine.records import Demonstration, Preference

Prepare = Callable[..., Prepared]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def pair(question: str, **more: Any) -> dict[str, Any]:
    return {"prompt": question, "chosen": "It left Lyon.", "rejected": "Please wait.", **more}


def pairs(count: int) -> list[dict[str, Any]]:
    return [pair(f"Question {number}?") for number in range(count)]


@pytest.fixture
def chatml(make_tokenizer: Callable[..., Any]) -> ChatTemplate:
    return ChatTemplate(make_tokenizer("chatml"))


@pytest.fixture
def gemma(make_tokenizer: Callable[..., Any]) -> ChatTemplate:
    return ChatTemplate(make_tokenizer("gemma"))


@pytest.fixture
def prepare(tmp_path: Path, chatml: ChatTemplate) -> Prepare:
    """`prepare(section_fields, …)` prepares in tmp_path/data as DPO would."""

    def run(
        section: dict[str, Any],
        *,
        template: ChatTemplate = chatml,
        seed: int = 0,
        kind: Any = Preference,
        quarantine: Quarantine | None = None,
        began_with: dict[str, Any] | None = None,
        **options: Any,
    ) -> Prepared:
        return Preparation(
            tmp_path / "data",
            DataSection(**section),
            kind,
            template,
            seed,
            quarantine or Quarantine(),
            **options,
        ).stores(began_with)

    return run


def records(store: TokenStore) -> list[Preference]:
    return [Preference.model_validate_json(store.record_json(i)) for i in range(len(store))]


def groups(store: TokenStore) -> set[str]:
    return {group_of(record) for record in records(store)}


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- What is trained on and what is held out -------------------------------------------------------------------------


def test_every_record_is_in_one_of_the_stores_or_counted_out(prepare: Prepare, tmp_path: Path) -> None:
    rows = [*pairs(60), pair("Question 3?", chosen="Another."), pair("x", chosen="late " * 200), pairs(1)[0], "oops"]
    prepared = prepare({"train": write(tmp_path / "a.jsonl", rows), "max_length_tokens": 128, "heldout_fraction": 0.3})
    train, heldout = prepared.counts["train"], prepared.counts["heldout"]
    assert (train["rows_in"], train["kept"], train["quarantined"], train["duplicates"]) == (64, 63, 1, 1)
    assert train["records"] + heldout["records"] == 62
    for store, counts in ((prepared.train, train), (prepared.heldout, heldout)):
        dropped = counts["dropped_too_long"] + counts["dropped_identical"] + counts["dropped_unusable"]
        assert counts["records"] == counts["rows"] + dropped
        assert len(store) == counts["rows"]
        assert [tree.row for tree in store] == list(range(len(store)))
    assert train["dropped_too_long"] + heldout["dropped_too_long"] == 1
    assert train["leaks_removed"] == 0
    assert heldout["split_off"] is True
    assert 8 <= len(prepared.heldout) <= 28


def test_rows_are_the_records_tokens(prepare: Prepare, tmp_path: Path, chatml: ChatTemplate) -> None:
    prepared = prepare({"train": write(tmp_path / "a.jsonl", pairs(10)), "heldout_fraction": 0})
    assert len(prepared.heldout) == 0
    for index, record in enumerate(records(prepared.train)):
        tree = chatml.preference_tree(record, index)
        stored = prepared.train[index]
        assert (stored.prompt, list(stored.answers)) == (list(tree.prompt), list(tree.answers))


def test_prompts_are_cut_inside_their_user_turn_and_counted(
    prepare: Prepare, tmp_path: Path, chatml: ChatTemplate
) -> None:
    rows = [pair("hello " * 100 + f"{number}?") for number in range(4)]
    prepared = prepare({"train": write(tmp_path / "a.jsonl", rows), "max_length_tokens": 64, "heldout_fraction": 0})
    counts = prepared.counts["train"]
    assert (counts["rows_cut"], counts["texts_cut"], counts["turns_dropped"]) == (4, 4, 0)
    for tree, record in zip(prepared.train, records(prepared.train), strict=True):
        assert 60 < len(tree.prompt) + max(map(len, tree.answers)) <= 64
        asked = chatml.tokenizer.decode(tree.prompt)
        assert asked.startswith("<|im_start|>user\n")
        assert asked.removeprefix("<|im_start|>user\n") in chatml.tokenizer.decode(chatml.prompt_ids(record.prompt))


def test_rows_that_the_template_refuses_are_quarantined_with_field_and_reason(
    prepare: Prepare, gemma: ChatTemplate, tmp_path: Path
) -> None:
    """Whether they are read, drawn or held out: no row is lost, and none ends the run."""
    rows = pairs(40)
    for place in (3, 7, 30):
        rows[place]["prompt"] = [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": f"Question {place}?"},
        ]
    source = write(tmp_path / "a.jsonl", rows)
    others = write(tmp_path / "b.jsonl", [pair(f"Other {number}?") for number in range(40)])
    for section in ({}, {"limit": 40}, {"train": others, "heldout": source}, {"heldout_fraction": 0.5}):
        prepared, entries = refusing(prepare, gemma, tmp_path, {"train": source, **section})
        assert [entry["line"] for entry in entries[-3:]] == [4, 8, 31]
        assert {entry["field"] for entry in entries} == {"prompt[0]"}
        assert {entry["reason"] for entry in entries} == {
            "is a system turn, which the template refuses: rendering failed (TemplateError: System role not supported)"
        }
        counts = prepared.counts["heldout" if "heldout" in section else "train"]
        assert (counts["rows_in"], counts["kept"], counts["quarantined"]) == (40, 37, 3)
        assert sum(each["rows"] for each in prepared.counts.values()) == (77 if "heldout" in section else 37)


def test_a_run_whose_rows_are_all_refused_says_why(prepare: Prepare, gemma: ChatTemplate, tmp_path: Path) -> None:
    rows = [
        pair("x", prompt=[{"role": "system", "content": "S"}, {"role": "user", "content": f"Q {n}"}]) for n in range(5)
    ]
    for section in ({}, {"limit": 3}):
        with pytest.raises(DataError, match=r"System role not supported\) \([35]\)"):
            refusing(prepare, gemma, tmp_path, {"train": write(tmp_path / "a.jsonl", rows), **section})


def refusing(
    prepare: Prepare, gemma: ChatTemplate, tmp_path: Path, section: dict[str, Any]
) -> tuple[Prepared, list[dict[str, Any]]]:
    """Prepare with a template that refuses system turns; gives what is in quarantine, too."""
    shutil.rmtree(tmp_path / "data", ignore_errors=True)
    path = tmp_path / "quarantine.jsonl"
    with Quarantine(path) as quarantine:
        prepared = prepare(section, template=gemma, quarantine=quarantine)
    return prepared, [json.loads(line) for line in path.read_text().splitlines()]


def test_a_prompt_is_held_out_with_all_its_rows_and_spellings(prepare: Prepare, tmp_path: Path) -> None:
    rows = [
        pair(f"{text} {number}", chosen=f"Answer {text}") for number in range(40) for text in ("Why", " why", "WHY")
    ]
    prepared = prepare({"train": write(tmp_path / "a.jsonl", rows), "heldout_fraction": 0.25})
    assert len(prepared.train) + len(prepared.heldout) == 120
    assert len(prepared.train) % 3 == len(prepared.heldout) % 3 == 0
    assert not groups(prepared.train) & groups(prepared.heldout)
    assert groups(prepared.heldout)


def test_the_same_prompts_are_held_out_of_preferences_and_demonstrations(
    prepare: Prepare, tmp_path: Path, chatml: ChatTemplate
) -> None:
    source = write(tmp_path / "a.jsonl", pairs(50))
    held = groups(prepare({"train": source, "heldout_fraction": 0.3}).heldout)
    other = Preparation(
        tmp_path / "sft",
        DataSection(train=source, heldout_fraction=0.3),
        Demonstration,
        chatml,
        0,
        Quarantine(),
    ).stores()
    demonstrations = [json.loads(other.heldout.record_json(i)) for i in range(len(other.heldout))]
    assert {prompt_group(each["messages"][0]["content"]) for each in demonstrations} == held


def test_explicit_held_out_rows_remove_their_prompts_from_training(prepare: Prepare, tmp_path: Path) -> None:
    train = write(
        tmp_path / "train.jsonl", [*pairs(20), pair("  QUESTION 3!  ", chosen="Other."), pair("Question 99?")]
    )
    heldout = write(tmp_path / "heldout.jsonl", [pair("question 3"), pair("Question 5?", margin=1), pair("New?")])
    prepared = prepare({"train": train, "heldout": heldout})
    assert prepared.counts["train"]["leaks_removed"] == 3  # Question 3 in two spellings, Question 5
    assert (len(prepared.train), len(prepared.heldout)) == (19, 3)
    assert not groups(prepared.train) & groups(prepared.heldout)
    assert "split_off" not in prepared.counts["heldout"]
    counts = prepared.counts["train"]
    assert counts["kept"] - counts["duplicates"] == counts["records"] + counts["leaks_removed"]


def test_a_held_out_row_that_is_too_long_still_keeps_its_prompt_out_of_training(
    prepare: Prepare, tmp_path: Path
) -> None:
    heldout = write(tmp_path / "heldout.jsonl", [pair("Question 3?", chosen="late " * 200), pair("New?")])
    prepared = prepare(
        {"train": write(tmp_path / "a.jsonl", pairs(9)), "heldout": heldout, "max_length_tokens": 100},
    )
    assert prepared.counts["heldout"]["dropped_too_long"] == 1
    assert prepared.counts["train"]["leaks_removed"] == 1


def test_ties_are_left_out_and_counted(prepare: Prepare, tmp_path: Path) -> None:
    rows = [*pairs(6), *({"prompt": f"T{n}", "response_1": "a", "response_2": "b", "preferred": 0} for n in range(3))]
    prepared = prepare(
        {"train": write(tmp_path / "a.jsonl", rows), "heldout_fraction": 0},
        usable=lambda record: not record.tie,
    )
    counts = prepared.counts["train"]
    assert (counts["records"], counts["rows"], counts["dropped_unusable"]) == (9, 6, 3)
    assert not any(record.tie for record in records(prepared.train))


def test_a_limit_is_a_sample_of_the_whole_source_by_the_seed(prepare: Prepare, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [*pairs(5), pairs(1)[0], *pairs(60)[5:]])
    prepared = prepare({"train": source, "limit": 20, "heldout_fraction": 0})
    counts = prepared.counts["train"]
    assert (counts["rows_in"], counts["duplicates"], counts["records"], len(prepared.train)) == (61, 1, 20, 20)
    asked = [record.prompt[0].content for record in records(prepared.train)]
    places = [int(text.removeprefix("Question ").removesuffix("?")) for text in asked]
    assert places == sorted(places)
    assert max(places) > 40 > 20 > min(places)


def test_progress_is_told_every_500_records(prepare: Prepare, tmp_path: Path) -> None:
    told: list[int] = []
    prepare({"train": write(tmp_path / "a.jsonl", pairs(1_001)), "heldout_fraction": 0}, progress=told.append)
    assert told == [0, 500, 1000]


# --- Samples that come with prefine ----------------------------------------------------------------------------------


def test_samples_by_name() -> None:
    (path,) = source_names("sample:support_desk/preferences")
    assert Path(path).is_file()
    assert source_names(["a.jsonl", "sample:support_desk/votes"])[0] == "a.jsonl"


@pytest.mark.parametrize("name", ["support_desk", "support_desk/preference", "", "../../records", "/etc/passwd"])
def test_an_unknown_sample_names_those_there_are(name: str) -> None:
    with pytest.raises(DataError) as caught:
        source_names(f"sample:{name}")
    assert str(caught.value) == (
        f"sample:{name}: no such sample. The samples are sample:support_desk/preferences, sample:support_desk/prompts, "
        "sample:support_desk/votes."
    )


# --- Nothing to train on ---------------------------------------------------------------------------------------------


def test_nothing_left_to_train_on(prepare: Prepare, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", pairs(3))
    with pytest.raises(DataError, match=r"data\.train: no record is left to train on after held-out prompts are split"):
        prepare({"train": source, "heldout": source})
    assert "train.arrow" not in files_in(tmp_path / "data")
    assert "prepared.json" not in files_in(tmp_path / "data")


def test_too_many_dropped_stops_with_the_reasons(prepare: Prepare, tmp_path: Path) -> None:
    rows = [*pairs(5), *(pair(f"L{n}", chosen="late " * 200) for n in range(4))]
    rows += [{"prompt": f"T{n}", "response_1": "a", "response_2": "b", "preferred": 0} for n in range(2)]
    section = {"train": write(tmp_path / "a.jsonl", rows), "max_length_tokens": 100, "heldout_fraction": 0}
    with pytest.raises(DataError) as caught:
        prepare(section, usable=lambda record: not record.tie)
    assert str(caught.value) == (
        "data.train: 6 of 11 records cannot be used (4 do not fit into data.max_length_tokens 100 even when cut, 0 "
        "have two answers of the same tokens, 2 cannot be used in this stage, such as ties). Raise "
        "data.max_length_tokens, or data.max_dropped_fraction to continue with the rest."
    )
    assert files_in(tmp_path / "data") == []
    prepared = prepare({**section, "max_dropped_fraction": 0.6}, usable=lambda record: not record.tie)
    assert len(prepared.train) == 5


def test_exactly_the_dropped_fraction_is_allowed(prepare: Prepare, tmp_path: Path) -> None:
    rows = [*pairs(2), *(pair(f"L{n}", chosen="late " * 200) for n in range(2))]
    section = {"train": write(tmp_path / "a.jsonl", rows), "max_length_tokens": 100, "heldout_fraction": 0}
    assert len(prepare(section).train) == 2


@pytest.mark.parametrize("content", ["", "\n\n", '{"prompt": "a"}\n', "oops\n" * 3])
def test_a_source_that_cannot_be_used_leaves_no_store(content: str, prepare: Prepare, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    for section in ({"train": str(tmp_path / "a.jsonl")}, {"train": "missing.jsonl"}):
        with pytest.raises(DataError):
            prepare(section)
        assert files_in(tmp_path / "data") == []


# --- Once a run ------------------------------------------------------------------------------------------------------


def test_a_resumed_run_opens_the_same_stores(prepare: Prepare, tmp_path: Path) -> None:
    rows = [*pairs(30), "oops"]
    section = {"train": write(tmp_path / "a.jsonl", rows), "heldout_fraction": 0.2}
    with Quarantine(tmp_path / "quarantine.jsonl") as quarantine:
        first = prepare(section, quarantine=quarantine)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with Quarantine(tmp_path / "quarantine.jsonl") as quarantine:
        again = prepare(section, quarantine=quarantine)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    assert (again.counts, again.digests) == (first.counts, first.digests)
    assert list(again.train) == list(first.train)
    assert again.counts["train"]["files"][0]["path"] == section["train"]


def test_preparing_twice_gives_the_same_digests(prepare: Prepare, tmp_path: Path) -> None:
    section = {"train": write(tmp_path / "a.jsonl", pairs(30)), "heldout_fraction": 0.2}
    first = prepare(section)
    contents = {name: (tmp_path / "data" / name).read_bytes() for name in files_in(tmp_path / "data")}
    for name in contents:
        (tmp_path / "data" / name).unlink()
    assert prepare(section).digests == first.digests
    assert {name: (tmp_path / "data" / name).read_bytes() for name in files_in(tmp_path / "data")} == contents


def test_changed_settings_data_or_template_refuse_to_go_on(
    prepare: Prepare, tmp_path: Path, make_tokenizer: Callable[..., Any]
) -> None:
    section = {"train": write(tmp_path / "a.jsonl", pairs(30)), "heldout_fraction": 0.2}
    first = prepare(section)
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\\n", "<|im_end|> ")
    changes: list[dict[str, Any]] = [
        {"section": {**section, "max_length_tokens": 512}},
        {"section": {**section, "heldout_fraction": 0.3}},
        {"section": {**section, "limit": 20}},
        {"section": {**section, "deduplicate": False}},
        {"section": section, "seed": 1},
        {"section": section, "template": ChatTemplate(tokenizer)},
        {"section": section, "kind": Demonstration},
    ]
    for change in changes:
        with pytest.raises(
            CheckpointError,
            match=r"the data, the tokenizer or the data settings differ from those that this run started",
        ):
            prepare(**change)
    moved = tmp_path / "moved.jsonl"
    moved.write_bytes((tmp_path / "a.jsonl").read_bytes())
    assert prepare({**section, "train": str(moved)}).digests == first.digests  # the content counts, not the name
    assert prepare({**section, "max_dropped_fraction": 0.1}).digests == first.digests
    with moved.open("a") as stream:
        stream.write(json.dumps(pair("One more?")) + "\n")
    with pytest.raises(CheckpointError):
        prepare({**section, "train": str(moved)})


def test_one_character_of_the_template_changes_the_ids(
    tmp_path: Path, prepare: Prepare, make_tokenizer: Callable[..., Any]
) -> None:
    section = {"train": write(tmp_path / "a.jsonl", pairs(5)), "heldout_fraction": 0}
    first = prepare(section)
    (tmp_path / "data" / "prepared.json").unlink()
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>\\n", "<|im_end|> ")
    assert prepare(section, template=ChatTemplate(tokenizer)).digests["train"] != first.digests["train"]


@pytest.mark.parametrize("name", ["train.arrow", "heldout.arrow"])
def test_a_store_that_was_lost_is_made_again(prepare: Prepare, tmp_path: Path, name: str) -> None:
    """The same bytes from the same sources, and the reason is given."""
    section = {"train": write(tmp_path / "a.jsonl", pairs(20)), "heldout_fraction": 0.5}
    first = prepare(section)
    assert first.made_again is None
    content = (tmp_path / "data" / name).read_bytes()
    (tmp_path / "data" / name).unlink()
    again = prepare(section)
    assert again.made_again is not None
    assert name in again.made_again
    assert (again.digests, again.counts) == (first.digests, first.counts)
    assert (tmp_path / "data" / name).read_bytes() == content
    assert prepare(section).made_again is None


def test_stores_that_were_lost_whole_are_made_again_aloud(prepare: Prepare, tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", pairs(20))
    section = {"train": file, "heldout_fraction": 0.5}
    first = prepare(section)
    began_with = {"key": first.key, "digests": first.digests}
    shutil.rmtree(tmp_path / "data")
    again = prepare(section, began_with=began_with)
    assert (again.made_again, again.digests) == ("its files were deleted", first.digests)
    shutil.rmtree(tmp_path / "data")
    with pytest.raises(
        CheckpointError, match=r"differ from those that this run started with \(its files were deleted\)"
    ):
        prepare(section, began_with=began_with | {"digests": {}})


def test_a_preparation_that_was_killed_begins_again(prepare: Prepare, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", pairs(600))
    code = """
import sys
from pathlib import Path
from prefine.data.tokens.trees import TokenTree
from prefine.data.prepare import Preparation
from prefine.data.reading.quarantine import Quarantine
from prefine.recipe.sections import DataSection
from prefine.records import Preference

class Template:
    fingerprint = ""

    def answers_tree(self, prompt, answers, **options):
        if prompt[0].content == "Question 590?":
            print("deep in", flush=True)
            sys.stdin.read()
        return TokenTree([1], ([2], [3]), (None, None))

section = DataSection(train=sys.argv[1])
Preparation(Path(sys.argv[2]), section, Preference, Template(), 0, Quarantine()).stores()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, source, str(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "deep in\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    left = files_in(tmp_path / "data")
    assert left
    assert all(name.endswith(".tmp") for name in left)
    prepared = prepare({"train": source})
    assert files_in(tmp_path / "data") == ["heldout.arrow", "prepared.json", "train.arrow"]
    assert len(prepared.train) + len(prepared.heldout) == 600
