"""`prefine data check` says what is in a file; what it cannot read is one line and exit code 2, with nothing left."""

from __future__ import annotations

import gzip
import json
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prefine.cli import data as data_module
from prefine.cli.app import main
from prefine.data.records.kinds import KINDS
from prefine.data.tokens.decoded import MarkedText
from prefine.data.tokens.template_source import PLAIN_TEMPLATE
from prefine.models.loading import embedded
from prefine.recipe.sections import DataSection, ModelSection

Check = Callable[..., tuple[int, str, str]]

GOOD = {"prompt": "My parcel is late.", "chosen": "It left Lyon.", "rejected": "Please wait."}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer, and just enough beside it to be found as a model."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["My parcel is late."], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")
    made.chat_template = PLAIN_TEMPLATE
    made.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def check(model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Check:
    """`check(FILE, …)` runs the verb with that tokenizer: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path, name: str | Path | None = model) -> tuple[int, str, str]:
        options = [] if name is None else ["--model", str(name)]
        with pytest.raises(SystemExit) as leaving:
            main(["data", "check", *map(str, arguments), *options])
        shown = capsys.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, shown.out, shown.err

    return run


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# --- What it shows ---------------------------------------------------------------------------------------------------


def test_rows_reasons_lengths_and_an_example(check: Check, tmp_path: Path) -> None:
    rows: list[Any] = [GOOD, GOOD, {**GOOD, "chosen": GOOD["rejected"], "rejected": GOOD["chosen"]}, "oops"]
    source = write(tmp_path / "pairs.jsonl", [*rows, {**GOOD, "chosen": None}])
    code, out, err = check(source)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for expected in (
        f"{source}: read as preferences",
        "read 5",
        "quarantined 2 cannot be used",
        "kept 3",
        "duplicates 1 left out: duplicates of an earlier row",
        "records 2 what a stage gets",
        "contradictions 1 kept: they contradict an earlier row",
        f"line is not valid JSON: expecting value 1 {source}:4",
        f"chosen is null, not text 1 {source}:5",
        "Write these rows to a file with --quarantine PATH.",
        "chosen is the longer answer in 1 of 2 pairs (50%).",
        "At 1,024 tokens (data.max_length_tokens) every record fits.",
        "User: My parcel is late.",
        "Assistant: ⟦It left Lyon.</s>⟧",
        "— or —",
        "⟦Please wait.</s>⟧",
    ):
        assert expected in lines, expected
    assert any(line.startswith("prompt and longest answer ") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


def test_quarantined_rows_are_written_where_asked(check: Check, tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", [GOOD, "oops"])
    code, out, _ = check(source, "--quarantine", tmp_path / "out" / "bad.jsonl")
    assert code == 0
    assert f"These rows are in {tmp_path / 'out' / 'bad.jsonl'}." in out
    assert json.loads((tmp_path / "out" / "bad.jsonl").read_text())["line"] == 2


def test_the_length_limit(check: Check, tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "prompt": "late " * 300}, {**GOOD, "chosen": "late " * 300}]
    _, out, _ = check(write(tmp_path / "a.jsonl", rows), "--max-length-tokens", "128")
    told = "cut to fit: 1; user turns shortened: 1; dropped: nothing that fits is learned: 1."
    assert f"At 128 tokens (data.max_length_tokens) {told}" in out


def test_several_sources_and_samples(check: Check, tmp_path: Path) -> None:
    code, out, _ = check("sample:support_desk/preferences", write(tmp_path / "a.jsonl", [GOOD]))
    assert code == 0
    assert f"sample:support_desk/preferences, {tmp_path / 'a.jsonl'}: read as preferences" in out
    assert " 321 " in out


@pytest.mark.parametrize(
    ("kind", "rows"),
    [("demonstrations", 3), ("prompts", 3), ("preferences", 3)],
)
def test_the_kind_may_be_given(kind: str, rows: int, check: Check, tmp_path: Path) -> None:
    pairs = [{**GOOD, "prompt": f"Q{n}"} for n in range(3)]
    code, out, _ = check(write(tmp_path / "a.jsonl", pairs), "--kind", kind, "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["kind"], found["counts"]["records"]) == (kind, rows)


def test_votes_show_their_thumbs(check: Check, tmp_path: Path) -> None:
    votes = [{"prompt": f"Q{n}", "completion": "A", "label": n < 1} for n in range(4)]
    _, out, _ = check(write(tmp_path / "a.jsonl", votes))
    assert "read as votes" in out
    assert "thumbs up 1 25%" in " ".join(out.split())


def test_json_is_the_whole_inspection(check: Check, tmp_path: Path, model: Path) -> None:
    code, out, err = check(write(tmp_path / "a.jsonl", [GOOD, "oops"]), "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found["model"] == str(model)
    assert found["tokens_left_out"] is None
    assert found["counts"]["rows_in"] == 2
    assert found["set_aside"] == [
        {"reason": "line is not valid JSON: expecting value", "rows": 1, "places": [f"{tmp_path / 'a.jsonl'}:2"]}
    ]
    assert found["answer_lengths"] == {"chosen_longer": 1, "rejected_longer": 0, "equal": 0}
    assert set(found["tokens"]["lengths"]) == {"prompt", "chosen", "rejected", "total"}
    assert found["example"][1] == {"text": "It left Lyon.</s>", "supervised": True}


def test_length_that_nearly_decides_is_said(check: Check, tmp_path: Path) -> None:
    rows = [{**GOOD, "prompt": f"Q{n}"} for n in range(25)]
    _, out, _ = check(write(tmp_path / "a.jsonl", rows))
    assert "chosen is the longer answer in 25 of 25 pairs (100%)." in out
    assert "warning: people preferred the longer answer so often that length alone nearly decides" in out


def test_nothing_in_a_file_reaches_the_terminal_as_a_command(check: Check, tmp_path: Path) -> None:
    rows = [{**GOOD, "prompt": "\x1b[2J[red]late[/red]\x07", "id": {"\x1b": 1}}, {**GOOD, "prompt": "\x1b]0;x\x07"}]
    _, out, _ = check(write(tmp_path / "[bold]\x1b.jsonl", rows))
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "[bold]" in out


def test_the_supervised_text_is_coloured_on_a_terminal() -> None:
    console = Console(force_terminal=True, color_system="standard", width=200, no_color=False)
    with console.capture() as captured:
        console.print(data_module._marked([MarkedText("asked ", False), MarkedText("said", True)]))
    assert "\x1b[32m⟦said⟧\x1b[0m" in captured.get()
    long = data_module._marked([MarkedText("x" * 10_000, True)]).plain
    assert "… 6,000 characters …" in long
    assert len(long) < 4_100


def test_records_that_the_template_refuses_are_a_warning(check: Check, tmp_path: Path, model: Path) -> None:
    strict = tmp_path / "strict"
    strict.mkdir()
    for file in model.iterdir():
        (strict / file.name).write_bytes(file.read_bytes())
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN_TEMPLATE
    (strict / "chat_template.jinja").write_text(refusing)
    code, out, _ = check(write(tmp_path / "a.jsonl", [{**GOOD, "system": "Be kind."}]), name=strict)
    assert code == 0
    assert "warning: the chat template refuses 1 of them. prompt[0] is a system turn, which the template refuses" in out
    assert "no system" in out


def test_defaults_are_those_of_a_recipe() -> None:
    assert ModelSection().name == data_module._EMBEDDED
    assert DataSection().max_length_tokens == data_module._MAX_LENGTH
    assert [kind.value for kind in data_module.Kind] == ["auto", *KINDS]


@pytest.mark.usefixtures("embedded_model")
def test_the_example_in_the_docs_is_what_it_prints(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = (Path(__file__).parents[2] / "docs" / "data.md").read_text("utf-8").split("\n## prefine data check\n")[1]
    rows, shown = re.findall(r"```(?:jsonl|console)\n(.*?)```", section, re.DOTALL)[:2]
    command, _, expected = shown.partition("\n")
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text(rows)
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = check(*command.removeprefix("$ prefine data check ").split(), name=None)
    assert code == 0
    assert [line.rstrip() for line in out.splitlines()] == expected.splitlines()


# --- Without a model -------------------------------------------------------------------------------------------------


def test_without_the_embedded_package_everything_but_tokens_is_shown(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(embedded._PACKAGES, "smollm2-135m", "no_such_package_here")
    code, out, err = check(write(tmp_path / "a.jsonl", [GOOD]), name=None)
    assert (code, err) == (0, "")
    assert "records 1 what a stage gets" in " ".join(out.split())
    assert "tokens: not counted." in out
    assert "which is not installed. Run: pip install --no-deps no-such-package-here" in out
    code, out, _ = check(tmp_path / "a.jsonl", "--json", name=None)
    assert json.loads(out)["tokens"] is None
    assert "pip install" in json.loads(out)["tokens_left_out"]


def test_a_model_that_was_named_and_is_not_there_is_an_error(check: Check, tmp_path: Path) -> None:
    code, out, err = check(write(tmp_path / "a.jsonl", [GOOD]), name="./no-such-model")
    assert (code, out) == (2, "")
    assert err.startswith("error: --model: there is no folder './no-such-model'")


# --- Bad input -------------------------------------------------------------------------------------------------------


def refused(check: Check, tmp_path: Path, source: Path, *options: str) -> str:
    """The one line that an unusable source gives; nothing was written."""
    before = sorted(path.name for path in tmp_path.rglob("*"))
    code, out, err = check(source, *options)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.endswith(".\n")
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    return err.removeprefix("error: ").removesuffix("\n")


@pytest.mark.parametrize("options", [(), ("--kind", "preferences")])
def test_a_missing_file(options: tuple[str, ...], check: Check, tmp_path: Path) -> None:
    assert refused(check, tmp_path, tmp_path / "none.jsonl", *options) == (
        f"{tmp_path / 'none.jsonl'}: no such file or folder. Check the path; it is taken from the working directory."
    )


@pytest.mark.parametrize("options", [(), ("--kind", "preferences")])
@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file(content: bytes, options: tuple[str, ...], check: Check, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    line = refused(check, tmp_path, tmp_path / "a.jsonl", *options)
    assert "is empty" in line or "has no rows" in line
    assert line.endswith("Give a file with at least one row.")


def test_wrong_columns(check: Check, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"question": "Q", "answer": "A"}])
    line = refused(check, tmp_path, source)
    remedy = "in a recipe, --column NAME=COLUMN on the command line; docs/data.md shows all formats."
    assert line == (
        f"{source}: its columns (question, answer) fit no known format. Map the columns: data.columns: {{prompt: "
        f"question, completion: answer}} {remedy}"
    )
    line = refused(check, tmp_path, source, "--kind", "votes", "--quarantine", str(tmp_path / "bad.jsonl"))
    assert line == (
        f"{source}: its columns (question, answer) fit no format of a vote. Map the columns: data.columns: "
        f"{{prompt: question, completion: answer, label: …}} {remedy}"
    )


def test_columns_of_other_names_and_rows_that_are_left_out(check: Check, tmp_path: Path) -> None:
    rows = [{"question": f"Q{n}", "answer": "A", "label": n > 1, "solution": "S"} for n in range(4)]
    source = write(tmp_path / "a.jsonl", rows)
    columns = ("--column", "prompt=question", "--column", "completion=answer")
    code, out, _ = check(source, *columns, "--kind", "demonstrations")
    assert code == 0
    assert re.search(r"left out +2 +valid, with nothing for this kind", out)
    assert "2 valid rows are left out: label is down, so the answer is not to be imitated (2)" in out
    assert "columns that look like answers are not read (rows in brackets): solution (4)" in out
    assert "read as votes" in check(source, *columns)[1]
    assert "read as demonstrations" in check(source, *columns, "--column", "label=")[1]
    assert refused(check, tmp_path, source, "--column", "prompt").startswith("--column prompt is not of the form")
    assert refused(check, tmp_path, source, "--column", "id=a", "--column", "id=b").startswith(
        "--column gives id twice"
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.bin"])
def test_a_binary_file(name: str, check: Check, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(bytes(range(256)) * 8)
    line = refused(check, tmp_path, tmp_path / name)
    assert line.startswith(f"{tmp_path / name}: ")
    assert any(word in line for word in ("binary", "gzip", "Parquet", "ending"))


def test_invalid_utf8_is_quarantined_and_alone_an_error(check: Check, tmp_path: Path) -> None:
    broken = b'{"prompt": "\xff", "chosen": "A", "rejected": "B"}\n'
    (tmp_path / "a.jsonl").write_bytes(json.dumps(GOOD).encode() + b"\n" + broken)
    code, out, _ = check(tmp_path / "a.jsonl")
    assert code == 0
    assert "line is not valid UTF-8" in out
    (tmp_path / "a.jsonl").write_bytes(broken)
    assert refused(check, tmp_path, tmp_path / "a.jsonl") == (
        f"{tmp_path / 'a.jsonl'}: no row of it can be read: line is not valid UTF-8 (1). "
        "Correct the rows, or read another file."
    )


@pytest.mark.parametrize("packed", [False, True])
def test_a_line_of_50_mb_is_quarantined_without_being_held(packed: bool, check: Check, tmp_path: Path) -> None:
    long = json.dumps({**GOOD, "chosen": "x" * 50_000_000}).encode()
    content = json.dumps(GOOD).encode() + b"\n" + long + b"\n" + json.dumps({**GOOD, "prompt": "Q"}).encode() + b"\n"
    source = tmp_path / ("a.jsonl.gz" if packed else "a.jsonl")
    source.write_bytes(gzip.compress(content, 1) if packed else content)
    del content
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, out, _ = check(source)
    assert code == 0
    assert "line is longer than 8 MiB" in out
    assert f"{source}:2" in out
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB; the line has 49,000
    source.write_bytes(gzip.compress(long, 1) if packed else long)
    assert "no row of it can be read: line is longer than 8 MiB (1)" in refused(check, tmp_path, source)


@pytest.mark.parametrize(
    "row",
    [
        {**GOOD, "chosen": None},
        {**GOOD, "prompt": [None]},
        {**GOOD, "prompt": [{"role": "user", "content": None}]},
        {**GOOD, "prompt": [{"role": None, "content": "Q"}]},
        {"chosen": [None], "rejected": [[None]]},
        {**GOOD, "chosen": {"text": None}},
    ],
)
def test_nested_nulls_are_quarantined_and_alone_an_error(row: Any, check: Check, tmp_path: Path) -> None:
    code, out, _ = check(write(tmp_path / "a.jsonl", [GOOD, row]))
    assert code == 0
    assert "null" in out or "an object" in out
    line = refused(check, tmp_path, write(tmp_path / "a.jsonl", [row]))
    assert f"{tmp_path / 'a.jsonl'}: none of 1 rows is a preference: " in line


def test_a_null_for_a_row_and_a_list_for_a_row(check: Check, tmp_path: Path) -> None:
    line = refused(check, tmp_path, write(tmp_path / "a.jsonl", ["null", "[[null]]"]))
    assert "line is null, not an object (1); line is a list, not an object (1)" in line


def test_an_unknown_sample(check: Check, tmp_path: Path) -> None:
    assert refused(check, tmp_path, Path("sample:nothing")).startswith(
        "sample:nothing: no such sample. The samples are"
    )


def test_the_quarantine_is_never_a_source(check: Check, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [GOOD])
    line = refused(check, tmp_path, source, "--quarantine", str(source))
    assert f"--quarantine is {source}, which is a source" in line
    assert json.loads(source.read_text()) == GOOD


def test_a_quarantine_that_cannot_be_written(check: Check, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [GOOD, "oops"])
    line = refused(check, tmp_path, source, "--quarantine", str(source / "bad.jsonl"))
    assert "a file is in the place of a folder" in line


@pytest.mark.parametrize("options", [(), ("a.jsonl", "--kind", "pairs"), ("a.jsonl", "--max-length-tokens", "2")])
def test_wrong_usage_is_exit_code_2(options: tuple[str, ...], check: Check) -> None:
    code, out, err = check(*options)
    assert (code, out) == (2, "")
    assert "data check" in err
