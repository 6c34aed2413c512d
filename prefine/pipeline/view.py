"""What a running pipeline shows: a line for each stage, and on a terminal the list of stages above the stage's bar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.text import Text

from prefine.formatting import duration
from prefine.pipeline.standing import StageStanding
from prefine.terminal import visible

if TYPE_CHECKING:
    from prefine.training.display import Display

_MARKS = {"cached": "=", "done": "✓", "now": "▸", "failed": "✗", "blocked": "✗", "left": " "}


class PipelineView:
    """Shows a pipeline while it runs.

    Args:
        console: where to write.
        enabled: False shows nothing.
    """

    def __init__(self, console: Console, enabled: bool = True) -> None:
        self._console = console
        self._enabled = enabled
        self._lines: dict[str, str] = {}
        self._display: Display | None = None

    def begin(self, standings: Sequence[StageStanding]) -> None:
        """Show where all stages stand."""
        self._lines = {each.stage.name: _MARKS.get(each.state, "·") for each in standings}
        for line in standing_lines(standings):
            self.say(line)

    def stage(self, standing: StageStanding, place: int) -> None:
        """A stage begins; `place` counts from 1."""
        self._lines[standing.stage.name] = _MARKS["now"]
        name, method = standing.stage.name, standing.stage.method
        self.say(f"stage {place} of {len(self._lines)}: {name} ({method}), {standing.state}: {standing.why}")

    def ended(self, name: str, mark: str, text: str, seconds: float | None = None) -> None:
        """A stage ended; `mark` is a key of the marks."""
        self._lines[name] = f"{_MARKS[mark]} {duration(seconds)}" if seconds is not None else _MARKS[mark]
        self.say(text)

    def say(self, text: str) -> None:
        """Show one line."""
        if self._display is not None:
            self._display.say(text)
        elif self._enabled:
            self._console.print(visible(text), highlight=False, markup=False, soft_wrap=True)

    @property
    def display(self) -> Display:
        """The display of a stage's own progress. Importing it loads torch."""
        if self._display is None:
            from prefine.pipeline.stage_display import StageDisplay

            self._display = StageDisplay(self._console, self._enabled, self._stages)
        return self._display

    def _stages(self) -> RenderableType:
        parts = [f"{name} {mark}".strip() for name, mark in self._lines.items()]
        return Text("  ·  ".join(parts), style="dim", overflow="ellipsis", no_wrap=True)


def standing_lines(standings: Sequence[StageStanding]) -> list[str]:
    """A line for each stage: its name, method, state, and why."""
    names = max((len(each.stage.name) for each in standings), default=0)
    methods = max((len(each.stage.method) for each in standings), default=0)
    return [
        f"{each.stage.name:<{names}}  {each.stage.method:<{methods}}  {each.state:<9}  {each.why}" for each in standings
    ]
