"""No verb asks the network for anything where a recipe names folders and files alone, also without HF_HUB_OFFLINE."""

from __future__ import annotations

import io
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from prefine.cli.app import VERBS, main
from prefine.export.run_export import export_run
from prefine.feedback.store import FeedbackStore, NewEvent
from prefine.serving.service import Service
from tests.annotation.projects import project, vote
from tests.export.here import reload_here
from tests.feedback.feedback_store import WITH_TEXTS, register
from tests.training import tiny

EVAL_LOG = Path(__file__).parents[1] / "exchange/logs/match.jsonl"
SHORT = {"training.max_steps": 1, "training.save_every_steps": None}


def arguments(verb: str, folder: Path, model: Path, data: Path, sft_run: Path, reward_run: Path) -> list[str]:
    """The words after a verb that let it do all that it does, on T and on runs of T."""

    def recipe(stage: str, **changes: object) -> str:
        return tiny.written(tiny.recipe(stage, folder / "run", model, data, SHORT | changes), folder / "recipe.yaml")

    def rows(*given: dict[str, Any]) -> str:
        return str(tiny.write_rows(folder / "in.jsonl", list(given)))

    def other_rows(row: dict[str, Any]) -> str:
        return str(tiny.write_rows(folder / "other.jsonl", [row]))

    def feedback() -> str:
        with FeedbackStore(folder / "feedback.db", WITH_TEXTS) as store:
            store.record(NewEvent(register(store, "a", "A"), "up"))
        return str(folder / "feedback.db")

    def pipeline() -> str:
        values = tiny.recipe("sft", folder / "run", model, data, SHORT).model_dump(mode="json", exclude={"run"})
        stages = {"sft": {"method": "sft", **values}, "all": {"method": "report"}}
        (folder / "pipeline.yaml").write_text(json.dumps({"stages": stages}))
        return str(folder / "pipeline.yaml")

    def two_heads() -> str:
        made = tiny.recipe("reward", folder / "heads", model, data, SHORT | {"reward.heads": 2})
        tiny.train(made)
        return str(made.run)

    def judged() -> str:
        with project(folder / "project.db", 2) as people:
            vote(people, "dpo")
        return str(folder / "project.db")

    chat = {"prompt": "Q", "completion": "A"}
    words: dict[str, Callable[[], list[str]]] = {
        "init": lambda: ["--data", str(data), "--model", str(model), "--out", str(folder / "pipeline.yaml"), "--yes"],
        "doctor": lambda: ["--device", "cpu"],
        "data check": lambda: [str(data), "--model", str(model)],
        "data audit": lambda: [str(data), "--out", str(folder / "audit")],
        "run": lambda: [pipeline(), "--set", f"folder={folder / 'pipeline'}"],
        "sft": lambda: [recipe("sft", **{"data.train": rows(*[chat | {"prompt": f"Q{n}"} for n in range(12)])})],
        "dpo": lambda: [recipe("dpo", **{"model.name": str(sft_run)})],
        "orpo": lambda: [recipe("orpo")],
        "kto": lambda: [recipe("kto", **{"data.train": rows(*tiny.votes(26))})],
        "reward train": lambda: [recipe("reward")],
        "reward check": lambda: [str(reward_run), "--out", str(folder / "out"), "--policy", str(sft_run)],
        "reward merge": lambda: [str(reward_run), str(folder / "merged")],
        "ppo": lambda: [recipe("ppo", **{"reward.name": str(reward_run)}, **tiny.UNGUARDED)],
        "judge": lambda: [
            rows(chat),
            other_rows(chat),
            "--votes-out",
            str(folder / "votes"),
            "--out",
            str(folder / "j"),
        ],
        "score": lambda: [str(reward_run), rows(chat), "--out", str(folder / "out.jsonl")],
        "evaluate": lambda: [
            *(str(sft_run), "--max-new-tokens", "4", "--limit", "2", "--no-regression"),
            *("--reward", str(reward_run), "--out", str(folder / "compared")),
        ],
        "generate": lambda: [str(sft_run), "--prompts", rows(chat), "--max-new-tokens", "4"],
        "chat": lambda: [str(sft_run), "--max-new-tokens", "4"],
        "recipe": lambda: ["dpo"],
        "plan": lambda: [recipe("dpo", **{"model.name": str(sft_run)}), "--method", "dpo"],
        "export write": lambda: [str(sft_run), "--to", "adapter", "--out", str(folder / "exported")],
        "export verify": lambda: [str(export_run(str(sft_run), "merged", out=folder / "exported").folder)],
        "serve": lambda: [str(sft_run), "--port", "0", "--feedback", str(folder / "feedback.db")],
        "report": lambda: [str(sft_run)],
        "runs list": lambda: [str(sft_run.parent)],
        "runs compare": lambda: [str(sft_run), str(reward_run)],
        "runs tag": lambda: [str(shutil.copytree(sft_run, folder / "tagged")), "best"],
        "runs remove": lambda: [str(shutil.copytree(sft_run, folder / "old")), "--yes"],
        "runs reproduce": lambda: [str(sft_run)],
        "feedback export": lambda: [feedback(), "--to", "votes"],
        "annotate compare": lambda: [
            *(str(sft_run), str(model), "--prompts", rows(*[{"prompt": f"Q{n}"} for n in range(4)])),
            *("--max-new-tokens", "8", "--out", str(folder / "compared"), "--port", "0"),
        ],
        "annotate open": lambda: [judged(), "--port", "0"],
        "annotate import": lambda: [
            *(rows({"prompt": "Q", "chosen": "A", "rejected": "B"}), "--project", str(folder / "project.db")),
            *("--order", "disagreement", "--reward", two_heads()),
        ],
        "annotate export": lambda: [judged(), "--to", "csv", "--out", str(folder / "votes.csv")],
        "annotate status": lambda: [judged()],
        "watch": lambda: [str(sft_run), "--once"],
        "evals write": lambda: [
            rows(chat, chat | {"prompt": "R"}),
            "--to",
            "promptfoo",
            "--out",
            str(folder / "evals"),
        ],
        "evals read": lambda: [str(EVAL_LOG)],
        "cache list": list,
        "cache clean": list,
    }
    assert words.keys() == VERBS.keys()
    return words[verb]()


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What asked for a name or a connection; each is refused. Libraries are told nothing about being offline."""
    seen: list[str] = []

    def refuse(name: str) -> Callable[..., Any]:
        known = getattr(socket, name, None)

        def refused(*given: object, **options: object) -> Any:
            if name == "getaddrinfo" and given[0] == "127.0.0.1" and known is not None:
                return known(*given, **options)  # no name is looked up: serve listens there
            seen.append(f"{name} {given[-2:]}")
            raise OSError(f"{name} was called")

        return refused

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse(name))
    for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection"):
        monkeypatch.setattr(socket, name, refuse(name))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    # Read from the environment when they are imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    return seen


def run(*words: str) -> object:
    with pytest.raises(SystemExit) as leaving:
        main(words)
    return leaving.value.code


def answer_once(app: Any, service: Service, sock: socket.socket, ready: Callable[[], None]) -> None:
    """Instead of serving until a signal comes."""
    ready()
    with TestClient(app, base_url="http://127.0.0.1") as client:
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert client.get("/").status_code == 200


def open_once(app: Any, sock: socket.socket, ready: Callable[[], None]) -> None:
    """The same of a page."""
    ready()
    with TestClient(app, base_url="http://127.0.0.1") as client:
        assert client.get("/").status_code == 200


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.usefixtures("real_report")
@pytest.mark.filterwarnings("error:Could not find a config file")  # peft's, where it would ask the hub for a folder
def test_no_connection_is_tried(
    verb: str,
    model: Path,
    data: Path,
    sft_run: Path,
    reward_run: Path,
    tried: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    monkeypatch.setattr("prefine.serving.server.run_server", answer_once)
    monkeypatch.setattr("prefine.web.server.run_app", open_once)
    reload_here(monkeypatch)  # in a process of its own nothing would be seen
    code = run(*verb.split(), *arguments(verb, tmp_path, model, data, sft_run, reward_run))
    assert (code, tried) == (0, []), capsys.readouterr()


def test_a_hub_id_is_asked_for(tried: list[str], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: libraries do not know that they are offline, and a connection would be seen."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between tries
    assert run("score", "nobody/nothing", str(data)) == 2
    assert tried
