"""One picture of a run for a terminal: progress, plots of its figures, held-out figures, guards and answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from prefine.degeneration import is_blank
from prefine.formatting import duration, figure, plural, whole
from prefine.report.charts import series
from prefine.report.facts import RunFacts, dictionaries, mapping, number, text
from prefine.report.guard_events import guard_events
from prefine.report.headline import headline
from prefine.report.stages.registry import stage_title
from prefine.rounding import two_digits
from prefine.terminal import visible
from prefine.watching.reading import Snapshot
from prefine.watching.sparkline import sparkline

# Key of metrics.jsonl -> name.
FIGURES = {
    "loss": "loss",
    "score": "reward",
    "kl_k3": "KL",
    "entropy": "entropy",
    "response_tokens": "answer length",
    "degenerate": "degenerate",
    "accuracy": "accuracy",
    "margin": "margin",
    "kl_baseline": "KL baseline",
    "perplexity": "perplexity",
    "judge": "judge",
    "grad_norm": "gradient norm",
}
_MOST_FIGURES, _MOST_EVALUATIONS, _MOST_EVENTS, _MOST_ANSWERS = 8, 4, 3, 2
_NAME_WIDTH, _ENDS_WIDTH = 14, 22
_TALL = 40  # lines of a terminal that has room for plots of two lines
_ANSWER_LINES = 3
_COLOURS = {"finished": "green", "running": "cyan", "starting": "cyan", "failed": "red", "stopped": "yellow"}
_ASCII = str.maketrans({"→": "->", "·": "|", "−": "-", "…": "...", "–": "-", "\u202f": " ", "\u2060": "", "’": "'"})


@dataclass(frozen=True)
class Frame:
    """Draws snapshots for a console."""

    console: Console

    @property
    def ascii_only(self) -> bool:
        """Whether the console's encoding lacks the characters of plots."""
        return not (self.console.encoding or "").lower().startswith("utf")

    def draw(self, now: Snapshot) -> RenderableType:
        """The whole picture."""
        parts: list[RenderableType] = [self._head(now), self._progress(now)]
        for title, part in (
            ("training", self._figures(now.facts)),
            ("held-out", self._heldout(now.facts)),
            ("guards", self._events(now.facts)),
            ("last answers", self._answers(now.facts)),
        ):
            if part is not None:
                parts += [self._rule(title), part]
        if now.status == "finished":
            parts += [self._rule("result"), self._text(headline(now.facts).sentence)]
        return Group(*parts)

    def line(self, row: Mapping[str, Any], now: Snapshot) -> str:
        """One step's figures, for a log."""
        total = f"/{now.total}" if now.total else ""
        kind = "held-out at step" if row.get("kind") == "heldout" else "step"
        found = [
            f"{name} {figure(value)}" for key, name in FIGURES.items() if (value := number(row.get(key))) is not None
        ]
        return self._plain(f"{kind} {row.get('step')}{total if kind == 'step' else ''}  {'  '.join(found)}")

    def event_line(self, now: Snapshot, place: int) -> str:
        """One guard's event, for a log."""
        event = guard_events(now.facts)[place]
        return self._plain(f"guard at step {event.step}: {event.words}; {event.did}")

    def _plain(self, words: str) -> str:
        words = visible(words)
        if not self.ascii_only:
            return words
        encoding = self.console.encoding or "ascii"
        return words.translate(_ASCII).encode(encoding, "backslashreplace").decode(encoding)

    def _text(self, words: str, style: str = "", **options: Any) -> Text:
        return Text(self._plain(words), style=style, **options)

    def _rule(self, title: str) -> Rule:
        return Rule(title, align="left", style="dim", characters="-" if self.ascii_only else "─")

    def _head(self, now: Snapshot) -> Text:
        manifest = now.facts.manifest
        status = "lost" if now.lost else now.status
        model = text(mapping(manifest.get("model")).get("name")) or ""
        parts = [str(now.path), stage_title(now.facts), model]
        head = self._text(status, style=f"bold {_COLOURS.get(status, 'yellow')}")
        return head.append(self._plain("  " + " · ".join(part for part in parts if part)), style="bold")

    def _progress(self, now: Snapshot) -> RenderableType:
        done, total = now.step, now.total
        grid = Table.grid(padding=(0, 2, 0, 0))
        steps = f"step {done:,}/{total:,}" if total else plural(done, "step")
        cells: list[RenderableType] = [Text(steps, no_wrap=True)]
        if total:
            width = max(10, min(40, self.console.width // 3))
            cells.append(self._bar(done, total, width))
        cells.append(self._text("  ".join(_facts(now)), overflow="ellipsis", no_wrap=True))
        grid.add_row(*cells)
        phase = _phase(now)
        return Group(grid, self._text(phase, style="dim")) if phase else grid

    def _bar(self, done: int, total: int, width: int) -> RenderableType:
        if self.ascii_only or not self.console.is_terminal:  # rich's bar differs from its ground by colour alone
            filled = min(width, width * done // total)
            full, empty = ("#", ".") if self.ascii_only else ("█", "░")
            return Text(full * filled + empty * (width - filled), no_wrap=True)
        return ProgressBar(total=total, completed=min(done, total), width=width)

    def _figures(self, facts: RunFacts) -> RenderableType | None:
        width = max(8, self.console.width - _NAME_WIDTH - _ENDS_WIDTH - 4)
        height = 2 if self.console.height >= _TALL and self.console.is_terminal else 1
        grid = Table.grid(padding=(0, 2, 0, 0))
        for _ in range(3):
            grid.add_column(no_wrap=True, overflow="crop")
        found = 0
        for key, name in FIGURES.items():
            _, values = series(facts.train, key, gaps=True)
            finite = [value for value in values if value == value]
            if not finite or found == _MOST_FIGURES:
                continue
            found += 1
            plot = sparkline(values, width, height, ascii_only=self.ascii_only)
            ends = " → ".join(figure(value) for value in dict.fromkeys((finite[0], finite[-1])))
            grid.add_row(
                Text(f"{name:<{_NAME_WIDTH}}", style="bold"), Text("\n".join(plot), style="cyan"), self._text(ends)
            )
        return grid if found else None

    def _heldout(self, facts: RunFacts) -> RenderableType | None:
        rows = facts.heldout[-_MOST_EVALUATIONS:]
        keys = [key for key in FIGURES if any(number(row.get(key)) is not None for row in rows)]
        if not keys:
            return None
        keys = keys[: max(1, (self.console.width - 8) // 12)]
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(justify="right")
        for _ in keys:
            grid.add_column(justify="right", no_wrap=True)
        grid.add_row(*(Text(name, style="dim") for name in ("step", *(FIGURES[key] for key in keys))))
        for row in rows:
            grid.add_row(whole(number(row.get("step"))), *(self._text(figure(number(row.get(key)))) for key in keys))
        return grid

    def _events(self, facts: RunFacts) -> RenderableType | None:
        events = guard_events(facts)
        if not events:
            return None
        lines = [
            self._text(
                f"step {event.step}: {event.words}; {event.did}{f'; {event.changed}' if event.changed else ''}",
                style="yellow",
            )
            for event in events[-_MOST_EVENTS:]
        ]
        more = len(events) - len(lines)
        return Group(*([self._text(f"{more} before these", style="dim")] if more else []), *lines)

    def _answers(self, facts: RunFacts) -> RenderableType | None:
        lines = []
        for answer in _last_answers(facts):
            room = self.console.width - len(answer.about) - 4
            lines.append(self._text(f"{_short(answer.asked, room)}  ({answer.about})", style="dim"))
            lines.append(self._text(_short(answer.said, _ANSWER_LINES * self.console.width - 4)))
        return Group(*lines) if lines else None


def _facts(now: Snapshot) -> list[str]:
    last = now.facts.train[-1] if now.facts.train else {}
    left, speed, memory = now.seconds_left, number(last.get("tokens_per_s")), number(last.get("peak_memory_gb"))
    took = number(now.facts.manifest.get("seconds"))
    return [
        *([f"left about {duration(left)}"] if left is not None else []),
        *([f"took {duration(took)}"] if took is not None and now.ended else []),
        *([f"{two_digits(speed)} tokens/s"] if speed is not None else []),
        *([f"{memory:.1f} GB peak"] if memory is not None else []),
    ]


def _phase(now: Snapshot) -> str:
    if now.lost:
        return (
            f"No process of this machine has the run open, and nothing has changed for {duration(now.silent_s)}: "
            "it was killed, or it runs elsewhere. A killed run goes on with --resume."
        )
    if now.ended:
        reason = text(now.facts.manifest.get("ended_by"))
        return f"ended with: {reason}" if reason and now.status != "finished" else ""
    if not now.facts.train:
        return "before the first step: model, data, self-checks and the figures before training"
    if now.total and now.step >= now.total:
        return "after the last step: held-out figures, samples and model"
    return f"last change {duration(now.silent_s)} ago"


@dataclass(frozen=True)
class _Answer:
    """An answer with its prompt, and what is to be said about it."""

    asked: str
    said: str
    about: str


def _last_answers(facts: RunFacts) -> Iterator[_Answer]:
    """The last answers of training, else the samples."""
    if facts.rollouts:
        for row in facts.rollouts[-_MOST_ANSWERS:]:
            about = f"step {row.get('step')}, reward {figure(number(row.get('score')), 2)}"
            yield _answer(row, row.get("response"), about)
        return
    for row in facts.samples[-_MOST_ANSWERS:]:
        when = "after" if isinstance(row.get("after"), str) else "before"
        yield _answer(row, row.get(when), f"{when} training")


def _answer(row: Mapping[str, Any], answer: object, about: str) -> _Answer:
    prompt = row.get("prompt")
    turns = dictionaries(prompt)
    asked = prompt if isinstance(prompt, str) else text(turns[-1].get("content")) if turns else None
    said = answer if isinstance(answer, str) and not is_blank(answer) else "(nothing visible)"
    return _Answer(asked or "", said, about)


def _short(words: str, most: int) -> str:
    words = " ".join(words.split())
    most = max(20, most)
    return words if len(words) <= most else f"{words[: most - 1]}…"
