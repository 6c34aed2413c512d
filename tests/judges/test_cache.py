"""What was received is kept."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefine.errors import CheckpointError, DataError
from prefine.judges.cache import Reply, ReplyCache, key_of


def test_replies_are_there_again(tmp_path: Path) -> None:
    path = tmp_path / "judge.db"
    reply = Reply("ä {}", "stop", 12, 3)
    with ReplyCache(path) as cache:
        assert cache.get("k") is None
        cache.put("k", "model", reply)
        cache.put("half", "model", Reply("\ud800", "length"))
    with ReplyCache(path) as cache:
        assert cache.get("k") == reply
        assert cache.get("half") == Reply("\\ud800", "length", None, None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_reply_survives_kill_9(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from prefine.judges.cache import Reply, ReplyCache
cache = ReplyCache(Path({str(tmp_path / "judge.db")!r}))
cache.put("k", "model", Reply("kept", "stop"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ})
    assert done.returncode == -signal.SIGKILL
    with ReplyCache(tmp_path / "judge.db") as cache:
        assert cache.get("k") == Reply("kept", "stop")


def test_every_reply_is_flushed(tmp_path: Path) -> None:
    with ReplyCache(tmp_path / "judge.db") as cache:
        assert cache._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
        assert cache._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_two_processes_and_many_threads_may_write(tmp_path: Path) -> None:
    path = tmp_path / "judge.db"
    with ReplyCache(path) as one, ReplyCache(path) as other, ThreadPoolExecutor(4) as pool:
        caches = [one, other]
        list(pool.map(lambda number: caches[number % 2].put(str(number), "m", Reply(str(number), "stop")), range(40)))
        assert all(one.get(str(number)) == other.get(str(number)) == Reply(str(number), "stop") for number in range(40))


def test_the_key_is_of_all_that_decides_a_reply() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "temperature": 0.0}
    keys = {
        key_of("http://a/v1", body),
        key_of("http://b/v1", body),
        key_of("http://a/v1", body | {"model": "n"}),
        key_of("http://a/v1", body | {"temperature": 0.5}),
        key_of("http://a/v1", body | {"messages": [{"role": "user", "content": "y"}]}),
    }
    assert len(keys) == 5
    assert key_of("http://a/v1", dict(reversed(body.items()))) in keys


def test_other_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    text, other = tmp_path / "text.db", tmp_path / "other.db"
    text.write_text("no database " * 1000, encoding="utf-8")
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    before = [path.read_bytes() for path in (text, other)]
    for path in (text, other):
        with pytest.raises(DataError, match=path.name):
            ReplyCache(path)
    assert [path.read_bytes() for path in (text, other)] == before
    with pytest.raises(CheckpointError, match="folder"):
        ReplyCache(tmp_path / "none" / "judge.db")
