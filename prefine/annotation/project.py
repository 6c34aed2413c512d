"""A project of human judgement in one file, `project.db`: what the page, the commands and the statistics use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from prefine.annotation.records import Ballot, Item, Judgement, Progress, Settings, Task, Vote


class Project:
    """An open project. Threads may use it at once; several processes may have the same file open.

    Every method may raise DataError if the file is damaged or locked for long, and CheckpointError if the disk is full.
    What a method has written is on the disk when it returns.
    """

    def __init__(self, path: Path) -> None:
        """Open the project at `path`.

        Raises:
            DataError: there is none, it is another file, or a later release wrote it.
        """
        raise NotImplementedError

    @classmethod
    def create(cls, path: Path, settings: Settings) -> Project:
        """Make a project.

        Raises:
            DataError: a file of that name exists; a setting is refused.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the file. Further calls fail."""
        raise NotImplementedError

    @property
    def settings(self) -> Settings:
        """The project's settings, as they are now."""
        raise NotImplementedError

    def add_items(self, items: Iterable[Item]) -> int:
        """Add items; `id` of each is ignored, and answers with id "" get one. All are added, or none. Returns how many.

        Raises:
            DataError: an item has no prompt, or more or fewer answers than the project's kind takes.
        """
        raise NotImplementedError

    def item(self, number: int) -> Item:
        """An item by its number.

        Raises:
            DataError: there is none.
        """
        raise NotImplementedError

    def items(self) -> Iterator[Item]:
        """All items in the order of the import."""
        raise NotImplementedError

    def prioritise(self, priorities: Mapping[int, float]) -> None:
        """Set items' priorities (any finite number, 0 if never set); the highest come first with order "priority"."""
        raise NotImplementedError

    def annotator(self, name: str) -> str:
        """Make an annotator, or give an existing one a new link. Returns the link's token, which is stored hashed only.

        Args:
            name: a pseudonym: 1 to 60 characters, no control characters.
        """
        raise NotImplementedError

    def by_token(self, token: str) -> str | None:
        """The annotator whose personal link has this token; None if nobody's has."""
        raise NotImplementedError

    def join(self, name: str) -> None:
        """Make an annotator of that name unless there is one: for the person at this machine, or with the password."""
        raise NotImplementedError

    def pause(self, annotator: str, paused: bool) -> None:
        """Pause: the annotator's open task goes back, and `next_task` gives None until this is called with False."""
        raise NotImplementedError

    def next_task(self, annotator: str) -> Task | None:
        """The annotator's open task again, with its token and sides, or a new one; None if nothing is left or paused."""
        raise NotImplementedError

    def vote(self, annotator: str, token: str, ballot: Ballot) -> int:
        """Write a vote, durably. Returns its number; for a key that was seen before, the number it got then.

        Raises:
            VoteError: the lease is another's, has expired and the item was given away, or the ballot is not allowed.
        """
        raise NotImplementedError

    def undo(self, annotator: str) -> Vote | None:
        """Take the annotator's latest current vote back; `next_task` then gives its item again. None if there is none."""
        raise NotImplementedError

    def votes(self, *, undone: bool = False) -> Iterator[Vote]:
        """Votes in the order of writing; with `undone`, also those taken back."""
        raise NotImplementedError

    def judgements(self) -> list[Judgement]:
        """What the current votes say, in the order of writing. Repeats are included and marked."""
        raise NotImplementedError

    def progress(self) -> Progress:
        """How far the project and each annotator are."""
        raise NotImplementedError
