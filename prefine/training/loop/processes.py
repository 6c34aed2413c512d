"""Communication between the processes of a run. No other module calls accelerate or torch.distributed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object

from prefine.errors import PrefineError
from prefine.training.loop.launch import launched

T = TypeVar("T")

# gloo's thread needs Python's lock to release the last message, and destroying the group joins that thread while
# holding the lock: if the thread was not done, a process sometimes hung forever.
_SECONDS_FOR_LAST_MESSAGE = 0.3


class Processes:
    """The processes that train together, each on its own device.

    Every method but `share` is collective: all processes must call it, in the same order. A single process
    exchanges nothing.

    Attributes:
        accelerator: prepares models and optimisers, computes and clips gradients.
        rank: number of this process, from 0.
        count: number of processes.
        is_main: whether this process, of rank 0, writes the run's files.
        device: where this process computes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self.is_main: bool = accelerator.is_main_process
        self.device: torch.device = accelerator.device

    @staticmethod
    def start(*, cpu: bool) -> Processes:
        """Join the other processes of the launch, if there are any.

        Args:
            cpu: compute on the CPU even if there is a GPU.
        """
        if not launched():  # this process may have trained before, on another device
            AcceleratorState._reset_state(reset_partial_state=True)
        return Processes(Accelerator(cpu=cpu))

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """This process's part of `items`: every `count`-th one, beginning with the `rank`-th."""
        return items[self.rank :: self.count]

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over all processes, by name; computed in fp32 if there are several. All must give the same names."""
        if self.count == 1:
            return dict(values)
        reduced = self.accelerator.reduce(torch.tensor(list(values.values()), device=self.device), reduction="sum")
        return dict(zip(values, reduced.tolist(), strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return bool(self.sum({"flag": float(flag)})["flag"])

    def gather(self, own: T) -> list[T]:
        """The values of all processes, in order of rank. They are pickled."""
        if self.count == 1:
            return [own]
        found: list[T] = gather_object([own])
        return found

    def gather_by_row(self, own: Mapping[int, T]) -> dict[int, T]:
        """The values of all processes, by row number."""
        return {row: value for part in self.gather(own) for row, value in part.items()}

    def from_main(self, own: T) -> T:
        """The main process's value, returned in every process."""
        if self.count == 1:
            return own
        values = [own]
        broadcast_object_list(values)
        return values[0]

    def all_or_raise(self, compute: Callable[[], T]) -> T:
        """The result of `compute`; if it raises a PrefineError in one process, every process raises it.

        Raises:
            PrefineError: the error of the process with the lowest rank that failed.
        """
        result: T | None = None
        failure: PrefineError | None = None
        try:
            result = compute()
        except PrefineError as error:
            failure = error
        for each in self.gather(failure):
            if each is not None:
                raise each
        return cast(T, result)

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process run the block first, so that the others find what it cached."""
        with self.accelerator.main_process_first():
            yield

    def wait(self) -> None:
        """Wait until all processes have called this."""
        self.accelerator.wait_for_everyone()

    def end(self) -> None:
        """Leave the process group."""
        self.wait()
        if self.count > 1:
            time.sleep(_SECONDS_FOR_LAST_MESSAGE)
        self.accelerator.end_training()
