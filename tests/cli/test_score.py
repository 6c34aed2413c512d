"""`prefine score`: rows in, rows with scores out, the same scores as everywhere; errors are one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from prefine.cli.app import main
from prefine.models.loading import load
from prefine.models.scoring import packed_scorer as reward
from tests.training import tiny

Score = Callable[..., tuple[int, str, str]]
LENGTH = 160  # tokens, as tiny.recipe says


@dataclass(frozen=True)
class Home:
    """T, and two runs on it: of one score head, and of two."""

    model: Path
    pairs: Path
    run: Path
    ensemble: Path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    root = tmp_path_factory.mktemp("home")
    made = Home(
        tiny.save_model(root / "T"),
        tiny.write_rows(root / "pairs.jsonl", tiny.pairs(24)),
        root / "RM",
        root / "ensemble",
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PREFINE_CACHE", str(root / "cache"))
        for run, heads in ((made.run, 1), (made.ensemble, 2)):
            changes = {"training.max_steps": 4, "training.evaluate_every_steps": 2, "reward.heads": heads}
            tiny.train(tiny.recipe("reward", run, made.model, made.pairs, changes))
        yield made


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` measures which type is faster here; tests are not to depend on the machine."""
    monkeypatch.setattr(load, "choose_dtype", lambda asked, device: (torch.float32, "for the test"))


@pytest.fixture
def score(home: Home, capsys: pytest.CaptureFixture[str]) -> Score:
    """`score(FILE, …)` by the run on T: exit code, stdout, stderr."""

    def run(*arguments: str | Path, model: Path = home.run) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main(["score", str(model), *map(str, arguments)])
        shown = capsys.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, shown.out, shown.err

    return run


def rows_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


# --- What it prints --------------------------------------------------------------------------------------------------


def test_pairs_come_back_in_order_with_both_scores_and_nothing_else_on_stdout(home: Home, score: Score) -> None:
    code, out, err = score(home.pairs)
    found = rows_of(out)
    assert (code, err) == (0, f"24 rows scored by {home.run}\n")
    assert [(row["chosen"], row["rejected"]) for row in found] == [
        (row["chosen"], row["rejected"]) for row in tiny.pairs(24)
    ]
    assert all(isinstance(row[name], float) for row in found for name in ("score_of_chosen", "score_of_rejected"))
    assert "score" not in found[0]


def test_scores_of_held_out_answers_are_centred(home: Home, score: Score) -> None:
    """The held-out pairs of the run: their 2 n scores have mean 0, and they are those of its report."""
    held = json.loads((home.run / "readiness.json").read_text("utf-8"))["pairs"]
    told = {(pair["chosen_score"], pair["rejected_score"]) for pair in held}
    assert sum(map(sum, told)) == pytest.approx(0, abs=1e-3)
    found = sorted((row["score_of_chosen"], row["score_of_rejected"]) for row in rows_of(score(home.pairs)[1]))
    for pair in told:
        assert any(pair == pytest.approx(each, abs=1e-5) for each in found)


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"prompt": "Q", "completion": "A", "label": True}, "A"),
        ({"prompt": "Q", "response": "A"}, "A"),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "A"),
        ({"prompt": "Q", "completion": ""}, ""),
        ({"prompt": "Frage: wo?", "completion": "Köln 🚚"}, "Köln 🚚"),
    ],
    ids=["vote", "response", "chat", "blank", "unicode"],
)
def test_single_answers_get_one_score(row: dict[str, Any], answer: str, score: Score, tmp_path: Path) -> None:
    code, out, _ = score(tiny.write_rows(tmp_path / "a.jsonl", [row]))
    (found,) = rows_of(out)
    assert code == 0
    assert {name: found[name] for name in row} == row
    assert answer in out  # as it is, not escaped
    assert isinstance(found["score"], float)
    assert "score_disagreement" not in found


def test_several_heads_tell_how_far_they_disagree(home: Home, score: Score, tmp_path: Path) -> None:
    pair = {"prompt": "Q", "chosen": "A", "rejected": "B"}
    (single,) = rows_of(
        score(tiny.write_rows(tmp_path / "a.jsonl", [{"prompt": "Q", "completion": "A"}]), model=home.ensemble)[1]
    )
    (both,) = rows_of(score(tiny.write_rows(tmp_path / "b.jsonl", [pair]), model=home.ensemble)[1])
    assert single["score_disagreement"] > 0
    assert single["score"] == pytest.approx(both["score_of_chosen"], abs=1e-5)
    assert single["score_disagreement"] == pytest.approx(both["score_of_chosen_disagreement"], abs=1e-5)


def test_a_score_depends_on_the_text_alone(score: Score, tmp_path: Path) -> None:
    """Not on the rows around it, nor on being a pair's answer."""
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in tiny.pairs(12)]
    pairs = [{**row, "rejected": f"{row['rejected']} and much more"} for row in tiny.pairs(12)]
    together = rows_of(score(tiny.write_rows(tmp_path / "a.jsonl", rows))[1])
    backwards = rows_of(score(tiny.write_rows(tmp_path / "b.jsonl", rows[::-1]))[1])[::-1]
    in_pairs = rows_of(score(tiny.write_rows(tmp_path / "c.jsonl", pairs))[1])
    for one, two, three in zip(together, backwards, in_pairs, strict=True):
        assert one["score"] == pytest.approx(two["score"], abs=1e-5)
        assert one["score"] == pytest.approx(three["score_of_chosen"], abs=1e-5)


def test_a_cut_prompt_is_cut_for_each_answer_alone(score: Score, tmp_path: Path) -> None:
    """What is left of a prompt that is too long must not depend on its other answers."""
    prompt = "".join(chr(97 + n * n % 23) for n in range(2 * LENGTH))
    short, long = ({"prompt": prompt, "completion": text} for text in ("good answer", "bad " * 20))
    (alone,) = rows_of(score(tiny.write_rows(tmp_path / "a.jsonl", [short]))[1])
    beside, _ = rows_of(score(tiny.write_rows(tmp_path / "b.jsonl", [short, long]))[1])
    assert beside["score"] == pytest.approx(alone["score"], abs=1e-5)


def test_a_run_is_scored_in_the_type_it_was_trained_in(
    home: Home, score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `auto` would choose another type, scores are still those of the run's report."""
    asked: list[str] = []

    def choose(name: str, device: torch.device) -> tuple[torch.dtype, str]:
        asked.append(name)
        return torch.float32, "for the test"

    monkeypatch.setattr(load, "choose_dtype", choose)
    score(home.pairs)
    assert asked == ["float32"]


# --- Where it goes ---------------------------------------------------------------------------------------------------


def test_a_file_gets_what_would_be_printed(home: Home, score: Score, tmp_path: Path) -> None:
    printed = score(home.pairs)[1]
    code, out, err = score(home.pairs, "--out", tmp_path / "scores.jsonl")
    assert (code, out) == (0, "")
    assert err.startswith("24 rows scored by ")
    assert (tmp_path / "scores.jsonl").read_text("utf-8") == printed


def test_a_file_is_written_whole_or_not_at_all(score: Score, tmp_path: Path) -> None:
    """The only row turns out to be none when it is read: what was there stays."""
    source = tiny.write_rows(tmp_path / "a.jsonl", [{"prompt": "Q", "completion": None}])
    (tmp_path / "scores.jsonl").touch()
    code, _, err = score(source, "--out", tmp_path / "scores.jsonl")
    assert code == 2
    assert "none of 1 rows is a completion" in err
    assert (tmp_path / "scores.jsonl").read_text() == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "scores.jsonl"]


def test_rows_that_cannot_be_scored_are_counted_and_written_where_asked(score: Score, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q", "completion": "A" * LENGTH},
        {"prompt": "Q", "completion": 7},
        {"prompt": "Q", "completion": "AA"},
    ]
    source = tiny.write_rows(tmp_path / "a.jsonl", rows)
    code, out, err = score(source)
    assert (code, [row["completion"] for row in rows_of(out)]) == (0, ["A", "AA"])
    assert "2 rows could not be scored: " in err
    assert f"completion leaves its prompt no room within the model's length (1, first at {source}:2)" in err
    assert "(not written: name a file with --quarantine)" in err
    code, again, err = score(source, "--quarantine", tmp_path / "bad.jsonl")
    assert (code, again) == (0, out)
    assert f"({tmp_path / 'bad.jsonl'})" in err
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2


def test_several_files_are_scored_in_order(score: Score, tmp_path: Path) -> None:
    sources = [
        tiny.write_rows(tmp_path / f"{name}.jsonl", [{"prompt": "Q", "completion": name}]) for name in ("b", "a", "c")
    ]
    code, out, err = score(*sources)
    assert (code, [row["completion"] for row in rows_of(out)]) == (0, ["b", "a", "c"])
    assert err.startswith("3 rows scored")


# --- Bad input -------------------------------------------------------------------------------------------------------


def refusal(told: tuple[int, str, str]) -> str:
    code, out, err = told
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").removesuffix("\n")


def test_a_model_that_is_none(home: Home, score: Score, tmp_path: Path) -> None:
    assert "there is no folder" in refusal(score(home.pairs, model=tmp_path / "none"))
    assert "has no score head" in refusal(score(home.pairs, model=home.model))


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "Q"}, "its columns (prompt) fit no format of a completion"),
        ({"question": "Q", "answer": "A"}, "its columns (question, answer) fit no known format"),
        ({"prompt": "Q", "completion": None}, "none of 1 rows is a completion"),
    ],
)
def test_a_file_without_answers(row: dict[str, Any], said: str, score: Score, tmp_path: Path) -> None:
    assert said in refusal(score(tiny.write_rows(tmp_path / "a.jsonl", [row])))


def test_a_file_that_is_not_there(score: Score, tmp_path: Path) -> None:
    assert refusal(score(tmp_path / "none.jsonl")).startswith(f"{tmp_path / 'none.jsonl'}: no such file or folder.")


def test_a_file_that_is_not_there_is_found_before_a_model_is_loaded(
    score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(section: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(reward, "load_reward", never)
    assert "no such file or folder" in refusal(score(tmp_path / "none.jsonl"))


def test_a_file_that_cannot_be_written(home: Home, score: Score, tmp_path: Path) -> None:
    assert "there is no folder" in refusal(score(home.pairs, "--out", tmp_path / "none" / "scores.jsonl"))
    assert "device: 'gpu' is not a device." in refusal(score(home.pairs, "--device", "gpu"))


def test_the_quarantine_is_never_a_source(home: Home, score: Score) -> None:
    before = home.pairs.read_bytes()
    assert "which is a source" in refusal(score(home.pairs, "--quarantine", home.pairs))
    assert home.pairs.read_bytes() == before


def test_one_file_cannot_take_scores_and_refused_rows(home: Home, score: Score, tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert "--out and --quarantine are both" in refusal(score(home.pairs, "--out", path, "--quarantine", path))
    assert not path.exists()
