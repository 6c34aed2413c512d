"""A queue that several clients share fairly: each has its turn, however many requests another one has sent."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """First come, first served within each client; round-robin between clients."""

    def __init__(self) -> None:
        self._queues: OrderedDict[Hashable, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Item]:
        for queue in self._queues.values():
            yield from queue

    def add(self, client: Hashable, item: Item) -> None:
        """Queue an item of a client."""
        self._queues.setdefault(client, deque()).append(item)

    def pop(self) -> Item:
        """The next item: of the client who has waited longest since its last turn.

        Raises:
            KeyError: the queue is empty.
        """
        client, queue = next(iter(self._queues.items()), (None, None))
        if queue is None:
            raise KeyError("the queue is empty")
        item = queue.popleft()
        if queue:
            self._queues.move_to_end(client)
        else:
            del self._queues[client]
        return item

    def remove(self, item: Item) -> bool:
        """Take an item out, wherever it is; False where it is not there."""
        for client, queue in self._queues.items():
            if item in queue:
                queue.remove(item)
                if not queue:
                    del self._queues[client]
                return True
        return False
