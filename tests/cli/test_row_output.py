"""`--out` of `generate` and `score`: rows that are done survive, a resume ends in the same bytes, and nothing else is
overwritten."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from prefine.cli.app import main
from prefine.errors import RecipeError
from prefine.evaluation import score_rows as scores
from prefine.generation import answer_rows as generation
from prefine.generation import row_settings
from prefine.models.loading import load
from prefine.models.scoring import packed_scorer as reward
from prefine.runs import row_file
from prefine.runs.row_file import RowFile
from tests.evaluation.readiness.test_measures import Fake, words
from tests.training import tiny

Run = Callable[..., tuple[int, str]]
State = dict[str, bytes]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_model(tmp_path_factory.mktemp("model") / "T")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four, so that a few rows are several; a reward model that counts words, and float32."""
    monkeypatch.setattr(generation, "_BLOCK_A_SLOT", 1)
    monkeypatch.setattr(generation, "_LEAST_BLOCK", 4)
    monkeypatch.setattr(scores, "_BLOCK", 4)
    monkeypatch.setattr(reward, "load_reward", lambda section: Fake(words, longest=6))
    monkeypatch.setattr(row_settings, "settings_of_scores", lambda reward: {"model": "fake"})
    monkeypatch.setattr(load, "choose_dtype", lambda asked, device: (torch.float32, "for the test"))


@pytest.fixture
def run(model: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """`run(verb, option, …)`: exit code and stderr; one answer in a slot at a time would hide what company does."""

    def call(verb: str, *arguments: str | Path) -> tuple[int, str]:
        more = ["--max-new-tokens", "5", "--samples", "3", "--slots", "3"] if verb == "generate" else []
        before = [verb, str(model)]
        with pytest.raises(SystemExit) as leaving:
            main([*before, *map(str, arguments), *more])
        return int(leaving.value.code or 0), capsys.readouterr().err

    return call


def write(folder: Path, verb: str) -> list[str | Path]:
    """A file with good rows, bad ones and too long ones, as the verb's arguments."""
    rows: list[dict[str, Any]] = [{"prompt": f"question {n}", "completion": f"it is {n}"} for n in range(7)]
    rows.insert(5, {"prompt": "p" * 600, "completion": "far too long for the model to score it"})
    rows.insert(2, {"prompt": ""})
    path = tiny.write_rows(folder / "in.jsonl", rows)
    return ["--prompts", path] if verb == "generate" else [path]


def held(folder: Path) -> State:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def put_back(folder: Path, files: State) -> None:
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.fixture
def moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[State]]:
    """What a kill would leave in the folder, after every row and every block."""
    seen: list[State] = []
    for name in ("append", "end_block"):
        real: Callable[..., None] = getattr(RowFile, name)

        def noting(self: RowFile, given: Any, real: Callable[..., None] = real) -> None:
            real(self, given)
            seen.append(held(tmp_path))

        monkeypatch.setattr(RowFile, name, noting)
    yield seen


# --- What a kill, Ctrl-C or an error leaves -------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["generate", "score"])
def test_a_resume_after_a_kill_at_any_row_ends_in_the_same_bytes(
    verb: str, run: Run, moments: list[State], tmp_path: Path
) -> None:
    """Both files; also where the kill left half a row, and a second kill follows the first."""
    arguments = [*write(tmp_path, verb), "--out", tmp_path / "out.jsonl", "--quarantine", tmp_path / "bad.jsonl"]
    assert run(verb, *arguments)[0] == 0
    whole = held(tmp_path)
    assert sorted(whole) == ["bad.jsonl", "in.jsonl", "out.jsonl"]
    killed = list(moments)
    lines = whole["out.jsonl"].splitlines(keepends=True)
    assert len(killed) > len(lines) >= 7
    for number, moment in enumerate(killed):
        for torn in (b"", b'{"prompt": [{"ro'):
            done = moment["out.jsonl.partial"]
            assert whole["out.jsonl"].startswith(done)
            put_back(tmp_path, {**moment, "out.jsonl.partial": done + torn})
            del moments[:]
            code, told = run(verb, *arguments, "--resume")
            assert (code, held(tmp_path)) == (0, whole), (number, torn, told)
            assert all(again["out.jsonl.partial"].startswith(done) for again in moments)  # nothing is taken back


@pytest.mark.parametrize("verb", ["generate", "score"])
def test_ctrl_c_says_how_to_go_on(verb: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*write(tmp_path, verb), "--out", tmp_path / "out.jsonl"]
    real = RowFile.append

    def interrupted(self: RowFile, row: Any) -> None:
        real(self, row)
        if self.rows == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(RowFile, "append", interrupted)
    code, told = run(verb, *arguments)
    assert code == 130
    assert told.startswith(f"interrupted; 6 rows done, in {tmp_path}/out.jsonl.partial; to resume: prefine {verb} ")
    assert "--resume" in told
    assert len((tmp_path / "out.jsonl.partial").read_bytes().splitlines()) == 6
    monkeypatch.setattr(RowFile, "append", real)
    code, told = run(verb, *arguments)
    assert code == 2
    assert "out.jsonl.partial holds the rows of an interrupted command. Add --resume" in told
    assert run(verb, *arguments, "--resume")[0] == 0
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_a_torn_file_keeps_the_rows_before_it_and_goes_on_when_it_is_mended(run: Run, tmp_path: Path) -> None:
    """The error names the file and the line; rows that are done are those of the mended file."""
    text = "".join(json.dumps({"prompt": f"question {n}", "completion": f"it is {n}"}) + "\n" for n in range(5_000))
    source, out = tmp_path / "in.jsonl.gz", tmp_path / "out.jsonl"
    source.write_bytes(gzip.compress(text.encode())[:-1_000])
    code, told = run("score", source, "--out", out)
    partial = tmp_path / "out.jsonl.partial"
    rows = partial.read_bytes().count(b"\n")
    assert (code, told.count("\n")) == (2, 1)
    assert rows > 1_000
    assert f"{source}: is damaged or truncated gzip data after line {rows}: " in told
    assert f"{rows:,} rows done before it, in {partial}; continue with the same command and --resume." in told
    source.write_bytes(gzip.compress(text.encode()))
    assert run("score", source, "--out", out, "--resume")[0] == 0
    assert run("score", source, "--out", tmp_path / "again.jsonl")[0] == 0
    assert out.read_bytes() == (tmp_path / "again.jsonl").read_bytes()


def test_an_error_before_the_first_row_leaves_nothing(run: Run, tmp_path: Path) -> None:
    source = tiny.write_rows(tmp_path / "in.jsonl", [{"prompt": None, "completion": "x"}])
    assert run("score", source, "--out", tmp_path / "out.jsonl")[0] == 2
    assert sorted(held(tmp_path)) == ["in.jsonl"]


# --- What a resume refuses ------------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(run: Run, moments: list[State], tmp_path: Path) -> list[str | Path]:
    """The arguments of a generate that was killed after six answers."""
    arguments = [*write(tmp_path, "generate"), "--out", tmp_path / "out.jsonl", "--quarantine", tmp_path / "bad.jsonl"]
    assert run("generate", *arguments)[0] == 0
    put_back(tmp_path, moments[6])
    return arguments


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--seed", "5"], "--resume: seed was 0 when "),
        (["--temperature", "0.5"], "--resume: temperature was 1.0 when "),
        (["--stop", "x"], "--resume: stop was [] when "),
        (["--split", "test"], '--resume: split was "train" when '),
    ],
)
def test_other_settings(more: list[str], told: str, interrupted: list[str | Path], run: Run, tmp_path: Path) -> None:
    before = held(tmp_path)
    code, said = run("generate", *interrupted, *more, "--resume")
    assert (code, said.count("\n")) == (2, 1)
    assert told in said and "Repeat the first command with --resume" in said
    assert held(tmp_path) == before


@pytest.mark.parametrize("reason", ["another seed", "a missing source", "Ctrl-C"])
def test_a_resume_that_ends_inside_the_first_block_keeps_its_rows(
    reason: str, run: Run, moments: list[State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No block was whole, so the state counts no row; the two answers are in the file all the same."""
    arguments = [*write(tmp_path, "generate"), "--out", tmp_path / "out.jsonl"]
    assert run("generate", *arguments)[0] == 0
    whole = held(tmp_path)["out.jsonl"]
    put_back(tmp_path, moments[1])
    before = held(tmp_path)
    assert before["out.jsonl.partial"].count(b"\n") == 2
    with monkeypatch.context() as changed:
        if reason == "a missing source":
            (tmp_path / "in.jsonl").rename(tmp_path / "away.jsonl")
        elif reason == "Ctrl-C":
            changed.setattr(load, "load_model", interrupt)
        code, said = run("generate", *arguments, "--resume", *(["--seed", "5"] if reason == "another seed" else []))
    if reason == "a missing source":
        (tmp_path / "away.jsonl").rename(tmp_path / "in.jsonl")
    assert code == (130 if reason == "Ctrl-C" else 2)
    if reason == "Ctrl-C":
        assert said.startswith(
            f"interrupted; the rows done before are kept in {tmp_path}/out.jsonl.partial; to resume: "
        )
    assert held(tmp_path) == before
    assert run("generate", *arguments, "--resume")[0] == 0
    assert held(tmp_path)["out.jsonl"] == whole


def interrupt(*given: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_other_rows(interrupted: list[str | Path], run: Run, tmp_path: Path) -> None:
    """Rows behind those that are done may change; rows before may not, not even one that went to quarantine."""
    source = tmp_path / "in.jsonl"
    text = source.read_text()
    source.write_text(text.replace("question 0", "question X"))
    code, said = run("generate", *interrupted, "--resume")
    assert code == 2
    assert "--resume: the first 2 records differ from those of the finished rows" in said
    source.write_text(text.replace('"question 6"', '"another one"'))
    assert run("generate", *interrupted, "--resume")[0] == 0


def test_a_damaged_state(interrupted: list[str | Path], run: Run, tmp_path: Path) -> None:
    state, partial = tmp_path / "out.jsonl.partial-state", tmp_path / "out.jsonl.partial"
    sound = json.loads(state.read_bytes())
    done = {**sound["done"], "quarantine": {"reasons": [1], "first": {}, "bytes": 0}}
    for damage in (
        b"",
        b"[]",
        b'{"settings": {}, "rows": -1, "bytes": 0, "done": null}',
        b"[" * 100_000,
        *(json.dumps({**sound, "done": wrong}).encode() for wrong in ({}, {**sound["done"], "sample": "x"}, done)),
    ):
        state.write_bytes(damage)
        code, said = run("generate", *interrupted, "--resume")
        assert (code, said.count("\n")) == (2, 1)
        assert f"--resume: {partial} has no valid out.jsonl.partial-state beside it. Delete it" in said


def test_a_shorter_file_and_a_lost_quarantine(
    interrupted: list[str | Path], run: Run, moments: list[State], tmp_path: Path
) -> None:
    before = moments[9]  # the second block is whole, and a row is in quarantine
    (tmp_path / "out.jsonl.partial").write_bytes(b"")
    assert "is shorter than the" in run("generate", *interrupted, "--resume")[1]
    put_back(tmp_path, before)
    (tmp_path / "bad.jsonl").unlink()
    assert "lacks rows that the interrupted command wrote there" in run("generate", *interrupted, "--resume")[1]


def test_a_resume_of_nothing(run: Run, tmp_path: Path) -> None:
    arguments = write(tmp_path, "score")
    assert "no --out is given" in run("score", *arguments, "--resume")[1]
    out = tmp_path / "out.jsonl"
    assert f"there is no {out}.partial to continue. Leave" in run("score", *arguments, "--out", out, "--resume")[1]
    assert run("score", *arguments, "--out", out)[0] == 0
    assert f"to continue and {out} is complete" in run("score", *arguments, "--out", out, "--resume")[1]


def test_one_process_at_a_time(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with RowFile(out, resume=False):
        code, said = run("score", *write(tmp_path, "score"), "--out", out)
    assert (code, said.count("\n")) == (2, 1)
    assert "is being written by another process" in said


def test_rows_of_a_process_that_ends_just_then_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finishes its file after another process has opened it and before that one has the lock."""
    out = tmp_path / "out.jsonl"

    def late(file: BinaryIO, partial: Path) -> None:
        partial.write_text("rows")
        partial.rename(out)

    monkeypatch.setattr(row_file, "_lock", late)
    with pytest.raises(RecipeError, match="holds the rows of an interrupted"):
        RowFile(out, resume=False)
    assert out.read_text() == "rows"


# --- What is tested before any work ---------------------------------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(section: object, *more: object, **options: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(load, "load_model", never)
    monkeypatch.setattr(reward, "load_reward", never)


@pytest.mark.parametrize("verb", ["generate", "score"])
@pytest.mark.parametrize("option", ["--out", "--quarantine"])
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("folder", "a folder of that name exists"),
        ("in.jsonl/out.jsonl", "a file is in the place of a folder"),
        ("in.jsonl", "which is a source"),
        ("notes.txt", "notes.txt already exists, and "),
        ("list.json", "list.json already exists, and "),
        ("x" * 300, "the name is too long"),
        ("/dev/null", "it is not a regular file"),
    ],
)
@pytest.mark.usefixtures("no_work")
def test_a_place_that_cannot_take_rows(verb: str, option: str, name: str, told: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("mine\n")
    (tmp_path / "list.json").write_text("[1]")
    arguments = write(tmp_path, verb)
    code, said = run(verb, *arguments, option, tmp_path / name)
    assert (code, said.count("\n")) == (2, 1), said
    assert told in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "in.jsonl", "list.json", "notes.txt"]
    assert (tmp_path / "notes.txt").read_text() == "mine\n"


def test_a_missing_folder_is_made_for_the_quarantine_alone(run: Run, tmp_path: Path) -> None:
    arguments = write(tmp_path, "score")
    assert "there is no folder" in run("score", *arguments, "--out", tmp_path / "none" / "out.jsonl")[1]
    assert run("score", *arguments, "--quarantine", tmp_path / "none" / "deep" / "bad.jsonl")[0] == 0
    assert (tmp_path / "none" / "deep" / "bad.jsonl").exists()


def test_an_empty_file_and_an_older_quarantine_are_replaced(run: Run, tmp_path: Path) -> None:
    out, bad = tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
    arguments = [*write(tmp_path, "score"), "--out", out, "--quarantine", bad]
    for _ in range(2):
        out.write_text("")  # as mktemp does
        assert run("score", *arguments)[0] == 0
        assert out.stat().st_size
        assert bad.stat().st_size


@pytest.mark.parametrize(
    ("verb", "row"),
    [
        ("score", {"prompt": "p", "completion": "c", "score": 4, "annotator": "ann"}),
        ("generate", {"prompt": "p", "completion": "c", "finish_reason": "stop", "tokens": 1, "logprob": -1.0}),
    ],
)
def test_no_file_of_rows_is_replaced(
    verb: str, row: dict[str, Any], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ratings by people have the same columns as ours. Nor one that comes while the rows are made."""
    out = tiny.write_rows(tmp_path / "out.jsonl", [row])
    mine = out.read_bytes()
    arguments = [*write(tmp_path, verb), "--out", out]
    code, said = run(verb, *arguments)
    assert (code, said.count("\n")) == (2, 1)
    assert f"--out: {out} already exists, and a file with content is not replaced. Name another file" in said
    assert sorted(held(tmp_path)) == ["in.jsonl", "out.jsonl"]
    out.unlink()
    real = RowFile.append

    def meanwhile(self: RowFile, given: Any) -> None:
        out.write_bytes(mine)
        real(self, given)

    with monkeypatch.context() as changed:
        changed.setattr(RowFile, "append", meanwhile)
        code, said = run(verb, *arguments)
    assert code == 2
    assert "rows done before it, in " in said
    assert out.read_bytes() == mine
    out.rename(tmp_path / "mine.jsonl")
    assert run(verb, *arguments, "--resume")[0] == 0


@pytest.mark.usefixtures("no_rename_while_open")
def test_the_file_is_closed_when_it_gets_its_name(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    with RowFile(out, resume=False) as rows:
        rows.require_same({})
        rows.append({"n": 1})
        rows.finish()
    assert out.read_text() == '{"n": 1}\n'
    assert list(tmp_path.iterdir()) == [out]
