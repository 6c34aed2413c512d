"""One engine as a process: start it, wait until it answers, forward its log, stop it with all that it started."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from prefine.engines.leash import leashed
from prefine.errors import EngineError
from prefine.terminal import visible

_LINES_KEPT = 20
_LINES_QUOTED = 3
_LONGEST_LINE = 2000  # bytes
_POLL_S = 0.1
_ANSWER_S = 5.0


@dataclass(frozen=True)
class Listening:
    """Where an engine listens, and how much it serves.

    Attributes:
        host, port: its address.
        api_key: what clients must send; None for none.
        slots: answers that are generated at once; None for the engine's own choice.
        context: the longest sequence in tokens; None for the model's own.
        more: arguments that the user adds; they come last, so they count.
    """

    host: str
    port: int
    api_key: str | None = None
    slots: int | None = None
    context: int | None = None
    more: Sequence[str] = ()


@dataclass(frozen=True)
class Command:
    """How an engine is started.

    Attributes:
        engine: its name for messages.
        arguments: the program and its arguments; no secret, as other users can read them.
        variables: what the environment gets besides this process's own; API keys go here.
        unset: names of variables that the engine must not see.
        health: the path that answers 200 once the engine is ready.
    """

    engine: str
    arguments: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)
    unset: Sequence[str] = ()
    health: str = "/health"


class EngineProcess:
    """A running engine. Use it as a context manager: leaving it stops the engine.

    Start it in a thread that lives as long as the engine is wanted: on Linux the engine ends with that thread.

    Args:
        command: see Command.
        say: gets each line of the engine's log, without a line feed.
        grace_s: how long the engine may take to stop before it is killed.
    """

    def __init__(self, command: Command, say: Callable[[str], None], grace_s: float = 20.0) -> None:
        self.command = command
        self._say = say
        self._grace_s = grace_s
        self._last: deque[str] = deque(maxlen=_LINES_KEPT)
        environment = {name: value for name, value in os.environ.items() if name not in command.unset}
        self._process = subprocess.Popen(  # noqa: S603 - a list of arguments, no shell
            leashed(command.arguments),
            env=environment | dict(command.variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us alone, and a signal to the group reaches all that it starts
        )
        self._reader = threading.Thread(target=self._forward, name=f"log of {command.engine}", daemon=True)
        self._reader.start()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its group."""
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def wait_until_ready(
        self,
        host: str,
        port: int,
        timeout_s: float,
        stopped: Callable[[], bool] = lambda: False,
        progress: Callable[[float], None] = lambda seconds: None,
    ) -> bool:
        """Wait until the engine answers requests.

        Args:
            stopped: whether the user wants to stop; asked ten times a second.
            progress: gets the seconds waited so far, ten times a second.

        Returns: False if `stopped` said so.

        Raises:
            EngineError: it ended, or did not answer in time.
        """
        begun = time.monotonic()
        while not stopped():
            if self.exit_code() is not None:
                raise self.death("before it was ready")
            if self._answers(host, port):
                return True
            waited = time.monotonic() - begun
            if waited > timeout_s:
                raise EngineError(
                    f"{self.command.engine} did not answer within {timeout_s:.0f} seconds{self._quoted()}",
                    "Give it longer with --start-timeout, or serve a smaller model.",
                )
            progress(waited)
            time.sleep(_POLL_S)
        return False

    def death(self, when: str) -> EngineError:
        """What to raise for an engine that has ended by itself: its exit code and the last lines of its log."""
        self._reader.join(timeout=2.0)
        code = self._process.returncode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        return EngineError(
            f"{self.command.engine} {how} {when}{self._quoted()}",
            "Its log above says why; put that right and try again.",
        )

    def stop(self) -> None:
        """End the engine and everything it has started: SIGTERM, and after the grace period SIGKILL."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(self._grace_s)
        if hasattr(os, "killpg"):
            with suppress(ProcessLookupError, PermissionError):  # nobody left; on macOS a zombie may not be signalled
                os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(timeout=2.0)

    def _answers(self, host: str, port: int) -> bool:
        connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_S)
        try:
            connection.request("GET", self.command.health)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _forward(self) -> None:
        stream = self._process.stdout
        if stream is None:
            return
        with suppress(ValueError, OSError):
            while line := stream.readline(_LONGEST_LINE):
                shown = line.decode("utf-8", "replace").rstrip().rpartition("\r")[2]  # of a progress bar, its end
                text = visible(shown.rstrip())
                if text:
                    self._last.append(text)
                    self._say(text)

    def _quoted(self) -> str:
        lines = list(self._last)[-_LINES_QUOTED:]
        return f" (its last lines: {' | '.join(lines)})" if lines else ""
