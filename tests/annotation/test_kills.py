"""Eight processes vote and are killed again and again: every acknowledged vote is there, and none twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prefine.annotation.project import Project
from tests.annotation.projects import project

WRITERS, LIVES, ITEMS, OVERLAP = 8, 3, 60, 3
LIMIT_S = 120

# A client: says what it is going to send, sends it, and says that it was acknowledged. What an earlier life had not
# seen acknowledged is sent again first, as a browser does.
CLIENT = """
import random, secrets, sys
from pathlib import Path
from prefine.annotation.project import Project
from prefine.annotation.records import Ballot
from prefine.annotation.votes import VoteError
path, name, pending = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split()
with Project(path) as project:
    while True:
        if pending:
            key, token, choice = pending
        else:
            task = project.next_task(name)
            if task is None:
                break
            key, token, choice = secrets.token_hex(8), task.token, random.choice([*task.shown, "tie"])
            if random.random() < 0.1:
                project.undo(name)
                continue
            print("send", key, token, choice, flush=True)
        try:
            print("done", key, project.vote(name, token, Ballot(key, choice)), flush=True)
        except VoteError:
            assert pending  # the vote was not written, and the task was given to somebody else
        pending = []
"""


def life(path: Path, name: str, pending: str, acknowledged: dict[str, int], kill_at: int | None) -> str:
    """One process, killed when it has said so many lines; what it had sent without seeing an acknowledgement."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, str(path), name, pending], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    # A client that waits for ever must fail the test and not stop it.
    limit = threading.Timer(LIMIT_S, process.kill)
    limit.start()
    lines = 0
    for line in process.stdout:
        word, key, *rest = line.split()
        if word == "send":
            pending = " ".join([key, *rest])
        elif line.endswith("\n"):
            acknowledged[key] = int(rest[0])
            pending = ""
        lines += 1
        if lines == kill_at:
            process.send_signal(signal.SIGKILL)  # what it has written until now is read to the end
    code = process.wait()
    assert limit.is_alive(), f"a client took longer than {LIMIT_S} s"
    limit.cancel()
    assert code == (0 if kill_at is None or lines < kill_at else code)
    return pending


def writer(path: Path, name: str) -> dict[str, int]:
    chance = random.Random(name)
    acknowledged: dict[str, int] = {}
    pending = ""
    for _ in range(LIVES - 1):
        pending = life(path, name, pending, acknowledged, chance.randint(1, 9))
    life(path, name, pending, acknowledged, None)
    return acknowledged


def test_every_acknowledged_vote_is_there_and_none_twice(tmp_path: Path) -> None:
    names = [f"annotator-{number}" for number in range(WRITERS)]
    path = tmp_path / "project.db"
    project(path, ITEMS, *names, overlap=OVERLAP, repeats=0.2).close()
    with ThreadPoolExecutor(WRITERS) as pool:
        acknowledged = dict(zip(names, pool.map(lambda name: writer(path, name), names), strict=True))
    with Project(path) as found:
        stored = list(found.votes(undone=True))
        current = list(found.votes())
        progress = found.progress()
    for name in names:
        own = {each.ballot.key: each.number for each in stored if each.annotator == name}
        assert acknowledged[name].items() <= own.items()
    assert len({(each.annotator, each.ballot.key) for each in stored}) == len(stored)
    firsts = [each for each in current if not each.repeat]
    assert max(Counter((each.annotator, each.item) for each in firsts).values()) == 1
    assert progress.complete == ITEMS
    assert progress.votes == len(firsts)
    assert progress.missing == 0
