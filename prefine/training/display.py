"""Shows a run's progress: a progress bar on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import psutil
import torch
from rich.console import Console
from rich.progress import Progress, ProgressColumn

from prefine.rounding import two_digits
from prefine.terminal import visible
from prefine.training.pace import BarLine, Pace, clock_time

# In a log file a line for every step is noise: this many lines show a run, and a slow one shows a line now and then.
_LINES_IN_A_LOG = 20
_SECONDS_BETWEEN_LINES = 120.0
# Name of the pass of optimiser steps.
TRAINING = "training"
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def peak_memory_gb(device: torch.device) -> float:
    """The most memory in use at any moment so far, GB (10^9 bytes): resident on a CPU, the allocator's on a GPU.

    The memory in use now is no guide: what a step frees is returned to the system only every few steps.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    # Linux counts it per program; getrusage would include what the process used before it started this program.
    if _STATUS.exists() and (found := re.search(r"^VmHWM:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024 / 1e9
    info = psutil.Process().memory_info()
    return float(getattr(info, "peak_wset", None) or _peak_by_getrusage() or info.rss) / 1e9


def forget_peak_memory(device: torch.device) -> None:
    """Reset the peak if the system allows it: the process may have had other runs before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):  # not Linux, or not allowed
        _CLEAR_REFS.write_text("5")  # sets VmHWM to the current resident size (proc(5))


def _peak_by_getrusage() -> int:
    """Bytes, as macOS counts them; 0 if the system has no such call."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _Unfailing:
    """A text stream whose writes never raise: a console that is full, closed or lost must not end a run.

    The metrics are on disk in any case. Characters that the console's encoding lacks are shown as escapes.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # ValueError: it was closed
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self._stream.write(text.encode("ascii", "backslashreplace").decode("ascii"))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.isatty()
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _nothing(step: int, metrics: Mapping[str, float]) -> None:
    pass


@dataclass(frozen=True)
class Callbacks:
    """User functions, called in the main process with a step's number and metrics when these are logged.

    Attributes:
        on_step: after an optimiser step (an update of PPO) whose metrics are logged.
        on_evaluation: after an evaluation on held-out rows.
    """

    on_step: Callable[[int, Mapping[str, float]], object] = _nothing
    on_evaluation: Callable[[int, Mapping[str, float]], object] = _nothing


class Display:
    """Shows one run's progress and messages. Silent outside the main process.

    Args:
        console: where to write; writes to its file no longer raise from now on.
        enabled: False shows nothing.
        clock: seconds, monotonic.
        callbacks: called even if it is not enabled.
    """

    def __init__(
        self,
        console: Console,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
        callbacks: Callbacks = Callbacks(),
    ) -> None:
        self._callbacks = callbacks
        if not isinstance(console.file, _Unfailing):
            console.file = cast(IO[str], _Unfailing(console.file))
        self.console = console
        self._enabled = enabled
        self._clock = clock
        self._bar: Progress | None = None
        self._task: Any = None
        self._what = ""
        self._pace = Pace(0, 0, clock)
        self._latest_line = clock()

    def leave_to_main_process(self) -> None:
        """Show nothing and call nothing from now on: this is not the main process."""
        self._enabled, self._callbacks = False, Callbacks()

    def say(self, text: str) -> None:
        """Show one line."""
        if self._enabled:
            # Unformatted: rich would break long lines in a log and read [brackets] in a path as markup.
            self.console.print(visible(text), highlight=False, markup=False, soft_wrap=True)

    def say_from_signal(self, text: str) -> None:
        """Write one line to standard error without buffers: a signal handler may interrupt another write."""
        if self._enabled:
            with contextlib.suppress(OSError):
                os.write(2, f"{text}\n".encode())

    @contextlib.contextmanager
    def progress(self, total: int, done: int, what: str = TRAINING) -> Iterator[None]:
        """Show progress over `total` steps, or rows of another pass; `done` of them are already done.

        A log gets a line at the start of a pass other than training.
        """
        self._what, self._pace, self._latest_line = what, Pace(total, done, self._clock), self._clock()
        if not self._enabled:
            yield
        elif not self.console.is_terminal:
            if what != TRAINING:
                self.say(f"{what}: {total:,} rows")
            yield
        else:
            with self.new_bar(BarLine(lambda: self.console.width)) as bar:
                self._bar, self._task = bar, bar.add_task(what, total=total, completed=done, facts=[], pace=self._pace)
                try:
                    yield
                finally:
                    self._bar = None

    def new_bar(self, *columns: ProgressColumn) -> Progress:
        """The progress bar of one pass on a terminal."""
        return Progress(*columns, console=self.console)

    def step(self, step: int, row: Mapping[str, float]) -> None:
        """Show an optimiser step."""
        self._pace.reached(step)
        total = self._pace.total
        if self._bar is not None:
            self._bar.update(self._task, completed=step, facts=facts_of(row))
        elif step in (1, total) or step % max(1, total // _LINES_IN_A_LOG) == 0 or self._silent_for_long:
            first, *rest = facts_of(row)
            self._say_now("  ".join([f"step {step}/{total}", first, self._left(), *rest]))
        self.tell_step(step, row)

    def tell_step(self, step: int, row: Mapping[str, float]) -> None:
        """Call the user's function."""
        self._callbacks.on_step(step, dict(row))

    def advance(self, done: int) -> None:
        """Show progress of a pass other than training."""
        self._pace.reached(done)
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
        elif self._enabled and self._silent_for_long:
            self._say_now(f"{self._what} {done:,}/{self._pace.total:,}  {self._left()}")

    @property
    def _silent_for_long(self) -> bool:
        return self._clock() - self._latest_line >= _SECONDS_BETWEEN_LINES

    def _say_now(self, line: str) -> None:
        self._latest_line = self._clock()
        self.say(line)

    def _left(self) -> str:
        return f"left {clock_time(self._pace.seconds_left())}"

    def heldout(self, step: int, row: Mapping[str, float]) -> None:
        """Show an evaluation."""
        kept = {name: value for name, value in row.items() if name != "seconds" and "/" not in name}
        metrics = "  ".join([*(f"{name} {value:.4g}" for name, value in kept.items()), *_sources(row)])
        self.say(f"held-out at step {step}:  {metrics}")
        self._callbacks.on_evaluation(step, dict(row))


def _sources(row: Mapping[str, float]) -> list[str]:
    """Each reward source's mean score and its share of the sum, if these say more than the sum."""
    names = [name.removeprefix("score/") for name in row if name.startswith("score/")]
    if len(names) == 1 and math.isclose(row[f"score/{names[0]}"], row["score"], rel_tol=1e-5, abs_tol=1e-9):
        return []
    return [f"{name} {row[f'score/{name}']:.3f} (share {row[f'share/{name}']:.3f})" for name in names]


def facts_of(row: Mapping[str, float]) -> list[str]:
    """A step's metrics as texts, the most important first."""
    facts = [f"loss {row['loss']:.4f}"]
    if "accuracy" in row:
        facts.append(f"accuracy {row['accuracy']:.2f}")
    if "kl_k3" in row:
        facts = [
            f"score {row['score']:.3f}",
            *_sources(row),
            f"KL {row['kl_k3']:.3f}",
            f"answer {row['response_tokens']:.0f} tokens",
        ]
    return [*facts, f"{two_digits(row['tokens_per_s'])} tokens/s", f"{row['peak_memory_gb']:.1f} GB peak"]
