"""What an evaluation that begins anew takes over from an earlier one: paid replies, and verdicts of people."""

from __future__ import annotations

from pathlib import Path

from prefine.evaluation.comparing.folder import JUDGE_REPLIES, JUDGEMENTS, REPLIES, EvaluationFolder
from prefine.evaluation.comparing.judgements import add_judgements
from prefine.judges.cache import ReplyCache


def carry_over(earlier: Path, folder: Path, *, compared: bool = True) -> None:
    """Add to an evaluation's folder the replies and verdicts of an earlier one that it lacks.

    The earlier folder keeps them, and a repeated call adds nothing: a kill at any moment loses nothing.

    Args:
        earlier: a folder, which need not be an evaluation's: then there is nothing to add.
        folder: created if there is none.
        compared: whether replies of compared endpoints are taken over, too, besides those of judges.

    Raises:
        PrefineError: a file of either folder is damaged, or it cannot be written.
    """
    databases = [name for name in (JUDGE_REPLIES, *([REPLIES] if compared else [])) if (earlier / name).is_file()]
    if not databases and not (earlier / JUDGEMENTS).is_file():
        return
    with EvaluationFolder(folder):
        for name in databases:
            with ReplyCache(folder / name) as cache:
                cache.add_from(earlier / name)
        add_judgements(folder / JUDGEMENTS, earlier / JUDGEMENTS)
