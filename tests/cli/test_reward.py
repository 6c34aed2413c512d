"""`prefine reward` trains, checks and merges; whatever a user gets wrong is one line and exit code 2."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from prefine.cli.app import main
from prefine.evaluation.readiness import check
from tests.training import tiny

Prefine = Callable[..., tuple[int, str, str]]
THRESHOLD = "readiness.min_pairs=3"
CHANGES = {"training.max_steps": 4, "training.evaluate_every_steps": 2, "data.heldout_fraction": 0.4}


@dataclass(frozen=True)
class Home:
    """T, a file of pairs, a recipe, and the run that `prefine reward RECIPE` made of them; what it said."""

    model: Path
    pairs: Path
    recipe: Path
    run: Path
    said: str

    def held(self, name: str = "readiness.json") -> Any:
        return json.loads((self.run / name).read_text("utf-8"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    root = tmp_path_factory.mktemp("home")
    model, pairs = tiny.save_model(root / "T"), tiny.write_rows(root / "pairs.jsonl", tiny.pairs(24))
    made = tiny.recipe("reward", root / "RM", model, pairs, CHANGES)
    tiny.written(made, root / "recipe.yaml")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PREFINE_CACHE", str(root / "cache"))
        with redirect_stdout(said), pytest.raises(SystemExit) as leaving:
            main(["reward", str(root / "recipe.yaml")])
        assert leaving.value.code == 0
        yield Home(model, pairs, root / "recipe.yaml", root / "RM", said.getvalue())


@pytest.fixture
def prefine(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Prefine:
    """`prefine("reward", …)`: exit code, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            main(list(map(str, arguments)))
        shown = capsys.readouterr()
        assert isinstance(leaving.value.code, int)
        return leaving.value.code, shown.out, shown.err

    return run


@pytest.fixture
def refused(prefine: Prefine) -> Callable[..., str]:
    """`refused("reward", …)`: the one line of an error, without its opening word."""

    def run(*arguments: str | Path) -> str:
        code, out, err = prefine(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert err.endswith("\n")
        assert err.count("\n") == 1
        return err.removeprefix("error: ").removesuffix("\n")

    return run


def never(section: object) -> None:
    raise AssertionError("a model was loaded")


def level(held: Any, name: str) -> str:
    (found,) = [finding["level"] for finding in held["findings"] if finding["name"] == name]
    return str(found)


def plain(text: str) -> str:
    return " ".join(text.replace("\u2060", "").split())


# --- Training --------------------------------------------------------------------------------------------------------


def test_a_recipe_alone_trains_and_the_run_says_whether_it_is_fit_for_ppo(home: Home) -> None:
    said = plain(home.said)
    verdict = home.held()["verdict"]
    assert f"readiness for PPO: {verdict}, see" in said
    assert "done: model in" in said
    assert home.held("manifest.json")["readiness"] == verdict
    assert {"model", "readiness.html", "readiness.json", "report.html"} <= {path.name for path in home.run.iterdir()}
    assert {"adapter_model.safetensors", "reward.json"} <= {path.name for path in (home.run / "model").iterdir()}


@pytest.mark.parametrize("words", [("reward",), ("reward", "train")])
def test_the_word_train_may_be_left_out(words: tuple[str, ...], home: Home, prefine: Prefine) -> None:
    code, out, _ = prefine(*words, home.recipe, "--resume")
    assert (code, "is finished already" in plain(out)) == (0, True)
    code, _, err = prefine(*words, "--set", "training.epochs=1", home.recipe)
    assert code == 2
    assert err.startswith(f"error: {home.run} already holds a run.")


def test_help_names_the_three_verbs(prefine: Prefine) -> None:
    for arguments in (("reward", "--help"), ("reward",)):
        _, out, err = prefine(*arguments)
        assert all(f" {verb} " in out + err for verb in ("train", "check", "merge"))


def test_a_recipe_that_is_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    assert refused("reward", tmp_path / "none.yaml") == f"There is no recipe {tmp_path / 'none.yaml'}. Check the path."


def test_demonstrations_are_nothing_to_learn_a_reward_from(
    home: Home, refused: Callable[..., str], tmp_path: Path
) -> None:
    chats = tiny.write_rows(tmp_path / "chats.jsonl", [{"prompt": "Q", "completion": "A"}])
    line = refused("reward", home.recipe, "--set", f"data.train={chats}", "--set", f"run={tmp_path / 'run'}")
    assert line == (f"data.train: {chats} holds demonstrations. A reward model learns from preferences, or from votes.")
    assert not (tmp_path / "run").exists()


# --- Checking --------------------------------------------------------------------------------------------------------


def test_check_shows_the_verdict_every_finding_and_where_the_report_is(home: Home, prefine: Prefine) -> None:
    before = home.held()
    code, out, err = prefine("reward", "check", home.run)
    assert (code, err) == (0, "")
    shown = plain(out)
    assert shown.startswith(f"{home.run}: {before['verdict']} check found required")
    for finding in before["findings"]:
        line = f"{finding['name']} {finding['found']} {finding['rule']} {finding['level']}"
        assert plain(line) in shown
        if finding["level"] != "go":
            assert plain(f"{finding['level']}: {finding['name']}. {finding['meaning']}") in shown
    assert out.rstrip().endswith(f"report: {home.run / 'readiness.html'}")


def test_check_finds_what_training_found(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    """The run, loaded again, gives the same scores to the same rows; the run's own report stays as it is."""
    before = (home.run / "readiness.json").read_bytes()
    prefine("reward", "check", home.run, "--out", tmp_path)
    again, first = json.loads((tmp_path / "readiness.json").read_text("utf-8")), json.loads(before)
    assert (home.run / "readiness.json").read_bytes() == before
    assert len(again["pairs"]) == first["accuracy"]["count"] > 2
    for one, other in zip(again["pairs"], first["pairs"], strict=True):
        assert one == {key: pytest.approx(value, abs=1e-5) if "score" in key else value for key, value in other.items()}
    assert again["accuracy"] == first["accuracy"]
    assert again["train_accuracy"] == first["train_accuracy"]
    assert again["verdict"] == first["verdict"]


def test_json_is_what_readiness_json_holds_and_nothing_else(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    code, out, err = prefine("reward", "check", home.run, "--json", "--out", tmp_path / "new" / "folder")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((tmp_path / "new" / "folder" / "readiness.json").read_text("utf-8"))
    assert (tmp_path / "new" / "folder" / "readiness.html").read_text("utf-8").startswith("<!DOCTYPE html>")


def test_a_threshold_can_be_set(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    arguments = ("reward", "check", home.run, "--json", "--out", tmp_path)
    assert level(json.loads(prefine(*arguments)[1]), "held-out pairs") == "caution"
    assert level(json.loads(prefine(*arguments, "--set", "readiness.min_pairs=3")[1]), "held-out pairs") == "go"


def test_files_are_judged_by_subset_and_leave_the_run_alone(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    """RewardBench's columns."""
    before = {path: path.read_bytes() for path in home.run.glob("readiness.*")}
    rows = [
        {**row, "prompt": f"new {row['prompt']}", "subset": f"part {n % 2}"} for n, row in enumerate(tiny.pairs(10))
    ]
    code, out, err = prefine("reward", "check", home.run, "--data", tiny.write_rows(tmp_path / "a.jsonl", rows))
    shown = plain(out)
    assert (code, err) == (0, "")
    assert "subset pairs accuracy 95 % interval" in shown
    assert "part 0 5 " in shown
    assert "part 1 5 " in shown
    assert "prompts trained on" not in shown
    assert out.rstrip().endswith("Add --out FOLDER for the report with its charts.")
    assert {path: path.read_bytes() for path in home.run.glob("readiness.*")} == before


def test_prompts_that_were_trained_on_are_told(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    """All 24 prompts of the file were read by the run, in capitals now; those not held out were trained on."""
    rows = [{**row, "prompt": row["prompt"].upper()} for row in tiny.pairs(24)]
    source = tiny.write_rows(tmp_path / "a.jsonl", rows)
    held = json.loads(prefine("reward", "check", home.run, "--data", source, "--json")[1])
    (found,) = [finding["found"] for finding in held["findings"] if finding["name"] == "prompts trained on"]
    assert found == f"{24 - home.held()['accuracy']['count']} pairs"


def test_votes_are_judged_two_by_two(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    votes = [{"prompt": f"Q{n}", "completion": f"answer {n}", "label": n % 2 == 0} for n in range(9)]
    code, out, _ = prefine(
        "reward", "check", home.run, "--data", tiny.write_rows(tmp_path / "a.jsonl", votes), "--json"
    )
    assert (code, json.loads(out)["accuracy"]["count"]) == (0, 4)


def test_rows_that_cannot_be_used_are_counted(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    source = tiny.write_rows(tmp_path / "a.jsonl", [*tiny.pairs(4), {"prompt": "Q", "chosen": "a", "rejected": "a"}])
    _, out, _ = prefine("reward", "check", home.run, "--data", source)
    assert "1 row could not be used; prefine data check shows which and why." in out


def test_an_answer_longer_than_the_model_takes_is_left_out(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    source = tiny.write_rows(
        tmp_path / "a.jsonl", [*tiny.pairs(4), {"prompt": "Q", "chosen": "a" * 200, "rejected": "b"}]
    )
    _, out, _ = prefine("reward", "check", home.run, "--data", source)
    assert "1 records were left out: an answer is too long for the model." in out


def test_nothing_in_a_file_reaches_the_terminal_as_a_command(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    rows = [{**row, "subset": "\x1b]0;x\x07[bold]odd\x1b[2J"} for row in tiny.pairs(4)]
    _, out, _ = prefine("reward", "check", home.run, "--data", tiny.write_rows(tmp_path / "a.jsonl", rows))
    assert "[bold]odd" in out
    assert "\x1b" not in out
    assert "\x07" not in out


def test_prompts_that_are_cut_are_no_reason_against_a_model(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    """An answer scored alone and one scored beside a longer one see the same prompt."""
    long = "".join(chr(97 + n * n % 23) for n in range(300))
    rows = [{**row, "prompt": f"{row['prompt']} {long}"} for row in tiny.pairs(8)]
    source = tiny.write_rows(tmp_path / "a.jsonl", rows)
    held = json.loads(prefine("reward", "check", home.run, "--data", source, "--json")[1])
    assert level(held, "score changes with a prompt shared or repeated") == "go"


# --- Against a policy ------------------------------------------------------------------------------------------------


def test_a_policy_with_the_same_tokens(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    _, out, _ = prefine("reward", "check", home.run, "--policy", home.model, "--out", tmp_path)
    assert f"{home.model} and {home.run} have the same tokens and chat template." in out


def test_a_policy_with_other_tokens_is_allowed_and_said_aloud(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    other = tiny.save_model(tmp_path / "other", template=tiny.CHATML.replace("\\n", " "))
    code, out, _ = prefine("reward", "check", home.run, "--policy", other, "--out", tmp_path / "out")
    assert code == 0
    assert f"{other} has another tokenizer or chat template than {home.run}: " in out
    assert "its answers are decoded and tokenized again for scoring." in out


# --- What cannot be checked ------------------------------------------------------------------------------------------


def test_a_run_that_is_not_there(refused: Callable[..., str], home: Home, tmp_path: Path) -> None:
    none = tmp_path / "none"
    assert str(none) in refused("reward", "check", none)
    line = refused("reward", "check", none, "--data", home.pairs)
    assert line.startswith(f"there is no folder '{none}'. ")


def test_a_language_model_is_no_reward_model(home: Home, refused: Callable[..., str]) -> None:
    line = refused("reward", "check", home.model, "--data", home.pairs)
    assert line.startswith(f"'{home.model}' has no score head")
    assert line.endswith("Name a reward run, or a sequence-classification model.")


def test_a_model_that_is_no_run_needs_data(home: Home, refused: Callable[..., str]) -> None:
    assert refused("reward", "check", home.run / "model") == (
        f"{home.run / 'model'} is not a reward run, so it has no held-out rows. Name pairs or votes with --data FILE."
    )


def test_its_result_alone_is_judged_with_data(home: Home, prefine: Prefine) -> None:
    code, out, _ = prefine("reward", "check", home.run / "model", "--data", home.pairs, "--json")
    assert (code, json.loads(out)["accuracy"]["count"]) == (0, 24)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "demonstrations"),
        ({"prompt": "Q"}, "prompts"),
    ],
)
def test_only_pairs_and_votes_judge(
    row: dict[str, Any], kind: str, home: Home, refused: Callable[..., str], tmp_path: Path
) -> None:
    source = tiny.write_rows(tmp_path / "a.jsonl", [row])
    line = refused("reward", "check", home.run, "--data", source)
    assert line == f"{source} holds {kind}. A reward model is checked on preferences or votes."


def test_a_file_of_ties_or_of_one_kind_of_votes_says_nothing(
    home: Home, refused: Callable[..., str], tmp_path: Path
) -> None:
    ties = [{"prompt": f"Q{n}", "chosen": "a", "rejected": "b", "tie": True} for n in range(3)]
    ups = [{"prompt": f"Q{n}", "completion": "a", "label": True} for n in range(3)]
    for rows in (ties, ups):
        line = refused("reward", "check", home.run, "--data", tiny.write_rows(tmp_path / "a.jsonl", rows))
        assert "holds no pair with a preferred answer that the model can score. Give preferences" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--data", "none.jsonl"), "none.jsonl: no such file or folder."),
        (("--set", "readiness.min_acuracy=0.7"), "Did you mean readiness.min_accuracy?"),
        (("--set", "readiness.min_accuracy=7"), "must be less than 1"),
        (("--policy", "./none"), "there is no folder './none'"),
        (("--device", "gpu"), "device: 'gpu' is not a device."),
    ],
)
def test_options_that_are_wrong(
    options: tuple[str, ...], said: str, home: Home, refused: Callable[..., str], tmp_path: Path
) -> None:
    assert said in refused("reward", "check", home.run, "--out", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_written(home: Home, refused: Callable[..., str]) -> None:
    assert "a file is in the place of a folder" in refused("reward", "check", home.run, "--out", home.pairs)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("readiness.json/", "readiness.json could not be written: a folder of that name exists"),
        ("readiness.html/", "readiness.html could not be written: a folder of that name exists"),
        ("readiness.json", "readiness.json exists, and prefine reward check did not write it"),
        ("readiness.html", "readiness.html exists, and prefine reward check did not write it"),
    ],
)
def test_a_place_for_the_report_is_tested_before_any_work(
    name: str, told: str, home: Home, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing there changes."""
    monkeypatch.setattr(check, "load_reward", never)
    out = tmp_path / "out"
    out.mkdir()
    (out / name).mkdir() if name.endswith("/") else tiny.write_rows(out / name, [{"verdict": "mine"}])
    before = {path: path.is_dir() or path.read_bytes() for path in out.iterdir()}
    assert told in refused("reward", "check", home.run, "--out", out, "--set", THRESHOLD)
    assert {path: path.is_dir() or path.read_bytes() for path in out.iterdir()} == before


def test_a_page_beside_a_report_needs_a_mark_of_its_own(
    home: Home, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "load_reward", never)
    (tmp_path / "readiness.json").write_text('{"verdict": "go", "findings": [], "accuracy": {}}')
    (tmp_path / "readiness.html").write_text("<p>my notes on prefine")
    told = refused("reward", "check", home.run, "--out", tmp_path, "--set", THRESHOLD)
    assert "readiness.html exists, and prefine reward check did not write it" in told


def test_a_report_over_what_is_read(
    home: Home, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "load_reward", never)
    source = tiny.write_rows(tmp_path / "readiness.json", tiny.pairs(4))
    line = refused("reward", "check", home.run, "--data", source, "--out", tmp_path)
    assert line.startswith(f"--out is {source}, which is a source")


def test_a_run_that_cannot_be_written_is_known_before_any_work(
    home: Home, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without --out the report goes into the run."""
    monkeypatch.setattr(check, "load_reward", never)
    run = shutil.copytree(home.run, tmp_path / "RM")
    (run / "readiness.html").unlink()
    (run / "readiness.html").mkdir()
    assert "a folder of that name exists" in refused("reward", "check", run)


def test_a_report_is_replaced_and_a_damaged_one_of_the_run_too(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    for _ in range(2):
        assert prefine("reward", "check", home.run, "--out", tmp_path / "out")[0] == 0
    run = shutil.copytree(home.run, tmp_path / "RM")
    (run / "readiness.json").write_text("{")
    assert prefine("reward", "check", run)[0] == 0
    assert json.loads((run / "readiness.json").read_text("utf-8"))["verdict"] == home.held()["verdict"]


def test_a_run_of_another_stage_is_called_that(home: Home, refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    tiny.written(tiny.recipe("sft", tmp_path / "sft", home.model, home.pairs), tmp_path / "sft" / "recipe.yaml")
    (tmp_path / "sft" / "manifest.json").write_text(json.dumps({"stage": "sft", "status": "finished"}))
    line = refused("reward", "check", tmp_path / "sft")
    assert line == f"{tmp_path / 'sft'} is a run of sft, not of a reward model. Name a run of prefine reward."


def test_a_run_that_was_refused_at_its_start_has_nothing_to_check(
    home: Home, prefine: Prefine, refused: Callable[..., str], tmp_path: Path
) -> None:
    code, _, err = prefine("reward", home.recipe, "--set", f"run={tmp_path / 'RM'}", "--set", "data.heldout_fraction=0")
    assert (code, "0 rows are held out" in err) == (2, True)
    assert "RM" in refused("reward", "check", tmp_path / "RM")


@pytest.mark.parametrize("override", ["reward.heads=3", "training.seed=1", "model.dtype=bfloat16"])
def test_only_thresholds_are_set_when_checking(
    override: str, home: Home, refused: Callable[..., str], tmp_path: Path
) -> None:
    """How the run was trained is its recipe's business: other folds, or another type, would tell of another model."""
    line = refused("reward", "check", home.run, "--set", override, "--out", tmp_path / "out")
    assert line.startswith(f"--set {override}: a check accepts thresholds only. ")
    assert not (tmp_path / "out").exists()


def test_a_run_without_its_data_folder_is_judged_on_a_file(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    """Runs are copied to other machines without the data they were trained on."""
    copy = tmp_path / "RM"
    for path in ("manifest.json", "recipe.yaml"):
        copy.mkdir(exist_ok=True)
        (copy / path).write_bytes((home.run / path).read_bytes())
    (copy / "model").symlink_to(home.run / "model")
    code, _, _ = prefine("reward", "check", copy, "--data", home.pairs)
    assert code == 0


# --- Merging ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def merged(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merged") / "RM"
    said = io.StringIO()
    with redirect_stdout(said), pytest.raises(SystemExit) as leaving:
        main(["reward", "merge", str(home.run), str(folder)])
    assert leaving.value.code == 0
    assert f"{folder}: scores differ from those of {home.run} by at most " in said.getvalue()
    return folder


def test_transformers_alone_gives_the_same_scores(home: Home, merged: Path, prefine: Prefine, tmp_path: Path) -> None:
    """Raw score less the bias of reward.json is what the run says of the same text, written out by hand."""
    model = AutoModelForSequenceClassification.from_pretrained(merged).eval()
    tokenizer = AutoTokenizer.from_pretrained(merged)
    (bias,) = json.loads((merged / "reward.json").read_text())["bias"]
    assert (model.config.num_labels, model.score.weight.shape[0]) == (1, 1)
    rows = tiny.pairs(3)
    source = tiny.write_rows(tmp_path / "a.jsonl", rows)
    told = json.loads(prefine("reward", "check", home.run, "--data", source, "--json")[1])["pairs"]
    for row, pair in zip(rows, told, strict=True):
        for side in ("chosen", "rejected"):
            text = f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n{row[side]}<|im_end|>"
            with torch.no_grad():
                raw = model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits
            assert float(raw) - bias == pytest.approx(pair[f"{side}_score"], abs=1e-4)


def test_a_merged_folder_says_what_it_is(home: Home, merged: Path) -> None:
    text = (merged / "README.md").read_text("utf-8")
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["prefine", "reward"],
    }
    assert "This folder holds a reward model: all weights." in body
    base = os.path.relpath(home.model, merged)
    assert f"Trained from: `{base}` (a path from this folder)." in body
    assert f"added the adapter of `{os.path.relpath(home.run, merged)}`" in body
    assert "Its score head is the head here. The weights are saved in float32." in body
    assert "SHA-256 of its weights: `" in body
    code = body.split("```python\n")[1].split("```")[0]
    found: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(merged)
        exec(code, found)  # noqa: S102 - what the README.md tells its reader to run
    assert isinstance(found["model"], LlamaForSequenceClassification)


def test_a_merged_model_is_checked_with_data(home: Home, merged: Path, prefine: Prefine) -> None:
    """And comes out as the run does."""
    held = [
        json.loads(prefine("reward", "check", name, "--data", home.pairs, "--json")[1]) for name in (home.run, merged)
    ]
    assert held[1]["accuracy"] == held[0]["accuracy"]
    for one, other in zip(*(each["pairs"] for each in held), strict=True):
        assert one["chosen_score"] == pytest.approx(other["chosen_score"], abs=1e-4)


def test_bfloat16_is_half_the_size(home: Home, merged: Path, prefine: Prefine, tmp_path: Path) -> None:
    code, out, _ = prefine("reward", "merge", home.run, tmp_path / "half", "--dtype", "bfloat16")
    assert code == 0
    assert "standard deviations" in out
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (tmp_path / "half", merged)]
    assert sizes[0] < 0.6 * sizes[1]


def test_what_cannot_be_merged(home: Home, refused: Callable[..., str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "'float16' is not known. Choose one of float32, bfloat16." in refused(
        "reward", "merge", home.run, out, "--dtype", "float16"
    )
    assert "has no score head" in refused("reward", "merge", home.model, out)
    assert "there is no folder" in refused("reward", "merge", tmp_path / "none", out)
    assert not out.exists()


def test_a_folder_that_is_taken_is_not_merged_into(
    home: Home, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "kept").write_text("mine")
    with pytest.raises(SystemExit) as leaving:
        main(["reward", "merge", str(home.run), str(tmp_path)])
    assert leaving.value.code == 2
    assert f"{tmp_path} is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


# --- What PPO goes by ------------------------------------------------------------------------------------------------


def test_other_thresholds_do_not_overwrite_the_runs_own_report(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    """A gate that one --set could open would be none."""
    before = (home.run / "readiness.json").read_bytes()
    options = ("--set", "readiness.min_accuracy=0.01", "--set", "readiness.min_pairs=1")
    assert prefine("reward", "check", home.run, *options)[0] == 0
    assert (home.run / "readiness.json").read_bytes() == before
    assert prefine("reward", "check", home.run, *options, "--out", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "readiness.json").exists()


def test_notes_reach_who_reads_json(home: Home, prefine: Prefine, tmp_path: Path) -> None:
    source = tiny.write_rows(tmp_path / "a.jsonl", [*tiny.pairs(4), {"prompt": "Q", "chosen": "a", "rejected": "a"}])
    code, out, err = prefine("reward", "check", home.run, "--data", source, "--json")
    assert code == 0
    assert json.loads(out)["verdict"]
    assert "1 row could not be used" in err


def test_a_mistyped_command_is_no_recipe(prefine: Prefine) -> None:
    code, _, err = prefine("reward", "chek", "runs/RM")
    assert code == 2
    assert "Did you mean 'check'" in err
