"""Runs user code so that its exits, directory changes and closed streams do not affect the process."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import inspect
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prefine.models.loading.location import one_line

Outcome = tuple[Any, BaseException | None]
# Extra wait after a call's time limit, so that a result computed just in time still arrives.
_GRACE_S = 0.5


class UserCodeError(Exception):
    """User code failed. The message is a predicate that follows the function's name: "raised ValueError: …"."""


class Call:
    """A call that runs in another thread.

    A plain function gets its own thread, because a call that hangs can be abandoned but not stopped. Coroutines share
    one event loop per process: they wait concurrently, and objects that a module binds to the loop can be reused.

    Args:
        function: called with `argument`.
        timeout_s: time limit of the call.
    """

    def __init__(self, function: Callable[[Any], Any], argument: Any, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._future: concurrent.futures.Future[Outcome] = concurrent.futures.Future()
        if is_async(function):
            self._future = asyncio.run_coroutine_threadsafe(_awaited(function, argument, timeout_s), _loop())
        else:
            threading.Thread(target=self._run, args=(function, argument), daemon=True).start()

    def result(self) -> Any:
        """The return value; iterables as lists.

        Raises:
            UserCodeError: the function raised an exception, exited or took too long.
        """
        left = max(0.0, self._deadline - time.monotonic())
        try:
            found, error = self._future.result(left + (_GRACE_S if left < self._timeout_s else 0.0))
        except TimeoutError:
            self._future.cancel()
            found, error = None, _OutOfTimeError()
        except concurrent.futures.CancelledError as cancelled:
            found, error = None, cancelled
        if isinstance(error, _OutOfTimeError):
            raise UserCodeError(f"did not return within {self._timeout_s:g} s")
        if error is not None:
            raise UserCodeError(f"raised {one_line(error)}") from error
        return found

    def _run(self, function: Callable[[Any], Any], argument: Any) -> None:
        try:
            found = function(argument)
            if inspect.isawaitable(found):
                outcome: Outcome = asyncio.run_coroutine_threadsafe(_value_of(found), _loop()).result()
            else:
                outcome = _listed(found), None
        except BaseException as error:  # noqa: BLE001 - whatever the user's code raises, exits included
            outcome = None, error
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # it timed out: nobody waits for it
            self._future.set_result(outcome)


class _OutOfTimeError(Exception):
    pass


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling the function returns a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def _awaited(function: Callable[[Any], Any], argument: Any, timeout_s: float) -> Outcome:
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return _listed(await function(argument)), None
    except BaseException as error:  # noqa: BLE001 - as above; an exit would end the loop
        return None, _OutOfTimeError() if limit.expired() else error


async def _value_of(awaitable: Any) -> Outcome:
    try:
        return _listed(await awaitable), None
    except BaseException as error:  # noqa: BLE001 - as above
        return None, error


def _listed(found: Any) -> Any:
    """A returned array, tensor or other iterable as a list; texts, mappings and single values as they are."""
    if hasattr(found, "tolist"):
        return found.tolist()
    return list(found) if isinstance(found, Iterable) and not isinstance(found, str | bytes | Mapping) else found


_loops: dict[int, asyncio.AbstractEventLoop] = {}


def _loop() -> asyncio.AbstractEventLoop:
    """This process's event loop for user code. A forked process gets its own: threads do not survive a fork."""
    if os.getpid() not in _loops:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        _loops[os.getpid()] = loop
    return _loops[os.getpid()]


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Restore the working directory and the standard streams afterwards, whatever the block does."""
    folder, streams = _folder(), (sys.stdout, sys.stderr)
    copies = [_duplicate(number) for number in (1, 2)]
    sys.stdout, sys.stderr = (stream and _Shielded(stream) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for number, copy in zip((1, 2), copies, strict=True):
            _put_back(number, copy)
        sys.stdout, sys.stderr = (_opened(stream, number) for number, stream in enumerate(streams, start=1))
        if folder is not None and _folder() != folder:
            with contextlib.suppress(OSError):
                os.chdir(folder)


class _Shielded:
    """A stream that cannot be closed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def close(self) -> None:
        """Only flush: the stream's owner closes it."""
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _folder() -> str | None:
    try:
        return str(Path.cwd())
    except OSError:  # it was removed
        return None


def _duplicate(number: int) -> int | None:
    try:
        return os.dup(number)
    except OSError:  # the process was started without this descriptor
        return None


def _put_back(number: int, copy: int | None) -> None:
    """Reopen a descriptor from its duplicate if it was closed; close the duplicate."""
    if copy is None:
        return
    try:
        os.fstat(number)
    except OSError:
        os.dup2(copy, number)
    os.close(copy)


def _opened(stream: Any, number: int) -> Any:
    """The stream, or a new one on its descriptor if it was closed."""
    if not getattr(stream, "closed", False):
        return stream
    return open(number, "w", encoding="utf-8", errors="replace", buffering=1, closefd=False)
