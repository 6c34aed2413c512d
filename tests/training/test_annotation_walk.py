"""The loop closed, as docs/annotation.md describes it: two runs compared, 60 votes on the page, exported, trained on by
DPO; then people prefer the new run to the one that it began with.

The annotator is a script with a taste: of two answers the one with more yes and fewer no.
"""

from __future__ import annotations

import json
import random
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from prefine.annotation.project import ProjectReader
from prefine.annotation.statistics import people_win_rate
from prefine.cli.app import main
from tests.annotation.page.http_annotator import HttpAnnotator
from tests.training import tiny

PROMPTS, VOTES, LIMIT_S = 160, 60, 300
WHOLE: dict[str, Any] = {"lora": None, "training.batch_size": 16, "training.max_tokens_per_microbatch": 4000}
SFT: dict[str, Any] = WHOLE | {"training.max_steps": 60, "training.epochs": 20, "training.save_every_steps": None}
DPO: dict[str, Any] = {"training.epochs": 6, "training.learning_rate": 3e-3, "training.save_every_steps": None}


def taste(answer: str) -> int:
    return answer.count("yes") - answer.count("no")


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(list(arguments))
    assert leaving.value.code == 0


@contextmanager
def compared(*arguments: str) -> Iterator[tuple[str, str]]:
    """`prefine annotate compare` as a process: the page's address and a personal link, once the page is open."""
    command = [sys.executable, "-m", "prefine", "annotate", "compare", *arguments, "--port", "0", "--no-browser"]
    process = subprocess.Popen([*command, "--link", "ann"], stderr=subprocess.PIPE, text=True)
    limit = threading.Timer(LIMIT_S, process.kill)
    limit.start()
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("ann: "):
                break
        assert said and said[-1].startswith("ann: "), "".join(said)
        link = said[-1].removeprefix("ann: ").strip()
        yield link.partition("/link")[0], link
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 0
    finally:
        limit.cancel()
        process.kill()
        process.wait()


def judge(address: str, link: str) -> int:
    """Give VOTES votes, if there is so much to judge: equal answers are not. Returns how many."""
    votes = 0
    with HttpAnnotator(address, link) as ann:
        while votes < VOTES and (screen := ann.screen()) is not None:
            (first, one), (second, other) = screen.answers.items()
            worth = taste(one) - taste(other)
            choice = "tie" if worth == 0 else first if worth > 0 else second
            ann.vote(screen.token, secrets.token_hex(8), choice).raise_for_status()
            votes += 1
    return votes


def rows(seed: int) -> list[dict[str, Any]]:
    """Half of the words are yes, half are no."""
    draw = random.Random(seed)
    said = [" ".join(draw.choice(["yes", "no"]) for _ in range(draw.randint(2, 5))) for _ in range(96)]
    return [{"prompt": f"question {i}", "completion": text} for i, text in enumerate(said)]


def win_rate(project: Path, candidate: str, baseline: str) -> tuple[int, int, int]:
    found = people_win_rate(ProjectReader(project).judgements(), candidate, baseline)
    return found.wins, found.ties, found.losses


@pytest.mark.slow
def test_sixty_votes_teach_a_run_what_the_annotator_likes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = tiny.write_rows(Path("prompts.jsonl"), [{"prompt": f"question {100 + i}"} for i in range(PROMPTS)])
    for name, seed in (("sft", 0), ("other", 1)):
        data = tiny.write_rows(Path(f"{name}.jsonl"), rows(seed))
        tiny.train(tiny.recipe("sft", Path(f"runs/{name}"), model, data, SFT | {"training.seed": seed}))
    settings = ("--prompts", str(prompts), "--max-new-tokens", "24", "--device", "cpu")
    with compared("runs/sft", "runs/other", *settings) as (address, link):
        assert judge(address, link) == VOTES
    project = "evaluations/sft-against-other/project.db"
    run("annotate", "export", project, "--to", "preferences", "--out", "preferences.jsonl")
    exported = [json.loads(line) for line in Path("preferences.jsonl").read_text().splitlines()]
    assert len(exported) == VOTES and {row["annotators"][0] for row in exported} == {"ann"}
    tiny.train(tiny.recipe("dpo", Path("runs/dpo"), Path("runs/sft"), Path("preferences.jsonl"), DPO))
    with compared("runs/dpo", "runs/sft", *settings) as (address, link):
        judge(address, link)
    wins, ties, losses = win_rate(Path("evaluations/dpo-against-sft/project.db"), "runs/dpo", "runs/sft")
    capsys.readouterr()
    run("annotate", "status", "evaluations/dpo-against-sft/project.db")
    said = capsys.readouterr().out
    assert wins > losses + 15, (wins, ties, losses)
    assert (
        "The candidate is runs/dpo, the baseline runs/sft. Judged by people, the candidate is better: it wins " in said
    )
