"""The console: no printed character controls the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from leafe.core import visible


class SafeConsole(Console):
    """A console that shows control characters of environments, servers and models as signs.

    Those of rich itself (colours, the live view's cursor) are no text and stay as they are.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(visible(text), style)
