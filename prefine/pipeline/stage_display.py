"""The display of one stage of a pipeline: its bar, below the list of all stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich.console import Console, RenderableType
from rich.progress import Progress, ProgressColumn

from prefine.training.display import Display


class StageDisplay(Display):
    """As Display, with a line about all stages above the bar.

    Args:
        console, enabled: see Display.
        stages: makes that line.
    """

    def __init__(self, console: Console, enabled: bool, stages: Callable[[], RenderableType]) -> None:
        super().__init__(console, enabled)
        self._stages = stages

    def new_bar(self, *columns: ProgressColumn) -> Progress:
        """See Display."""
        return _BarBelowStages(self._stages, *columns, console=self.console)


class _BarBelowStages(Progress):
    def __init__(self, stages: Callable[[], RenderableType], *columns: ProgressColumn, console: Console) -> None:
        self._stages = stages
        super().__init__(*columns, console=console)

    def get_renderables(self) -> Iterable[RenderableType]:
        """The line about the stages, then the bar."""
        yield self._stages()
        yield from super().get_renderables()
