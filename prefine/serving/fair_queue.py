"""A queue that several clients share fairly: each has its turn, however many requests another one has sent."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from typing import Generic, NamedTuple, TypeVar

Item = TypeVar("Item")


class Client(NamedTuple):
    """Who asks. The user is what the client says, so that a client with many users has no more turns than another.

    Attributes:
        address: of its machine.
        user: the user that the request names.
    """

    address: str
    user: str | None = None


class FairQueue(Generic[Item]):
    """First come, first served within each user; round-robin between addresses, and between the users of each."""

    def __init__(self) -> None:
        self._addresses: OrderedDict[str, OrderedDict[str | None, deque[Item]]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(self.waiting_of, self._addresses))

    def __iter__(self) -> Iterator[Item]:
        for users in self._addresses.values():
            for queue in users.values():
                yield from queue

    def waiting_of(self, address: str) -> int:
        """How many items of an address wait."""
        return sum(map(len, self._addresses.get(address, {}).values()))

    def add(self, client: Client, item: Item) -> None:
        """Queue an item of a client."""
        self._addresses.setdefault(client.address, OrderedDict()).setdefault(client.user, deque()).append(item)

    def pop(self) -> Item:
        """The next item: of the address that has waited longest since its last turn, and of its user who has.

        Raises:
            KeyError: the queue is empty.
        """
        item = self.next()
        address, users = next(iter(self._addresses.items()))
        user, queue = next(iter(users.items()))
        queue.popleft()
        users.move_to_end(user)
        self._addresses.move_to_end(address)
        self._tidy(address, user)
        return item

    def next(self) -> Item:
        """What `pop` would return.

        Raises:
            KeyError: the queue is empty.
        """
        for item in self:
            return item
        raise KeyError("the queue is empty")

    def remove(self, item: Item) -> bool:
        """Take an item out, wherever it is; False where it is not there."""
        for address, users in self._addresses.items():
            for user, queue in users.items():
                if item in queue:
                    queue.remove(item)
                    self._tidy(address, user)
                    return True
        return False

    def _tidy(self, address: str, user: str | None) -> None:
        """Forget a client that has nothing left."""
        users = self._addresses[address]
        if not users[user]:
            del users[user]
        if not users:
            del self._addresses[address]
