"""A store with answers in it, in few words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefine.feedback.store import AnsweredRequest, FeedbackSettings, FeedbackStore

ASKED = [{"role": "user", "content": "My parcel is late."}]
WITH_TEXTS = FeedbackSettings(store_texts=True)


def register(store: FeedbackStore, identifier: str, answer: str, asked: Any = ASKED, **others: Any) -> str:
    """An answer that the model ended itself, unless it is said otherwise; its id."""
    given = {"model": "dpo", "prompt_tokens": 9, "completion_tokens": 3, "finish_reason": "stop", **others}
    store.register(AnsweredRequest(id=identifier, messages=asked, answer=answer, **given))
    return identifier


def going_on(answer: str, more: str = "And now?", asked: Any = ASKED) -> list[dict[str, str]]:
    """The conversation in which that answer was given and the user went on."""
    return [*asked, {"role": "assistant", "content": answer}, {"role": "user", "content": more}]


def all_bytes(path: Path) -> bytes:
    """Whatever the database has on the disk, its log included."""
    return b"".join(each.read_bytes() for each in sorted(path.parent.glob(f"{path.name}*")) if each.suffix != ".db-shm")
