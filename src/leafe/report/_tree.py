"""One exploration tree as a drawing: an episode is a row, a turn is a node at its step, a rollback
is a dashed line back to where it was tried again.

Which tree: the rule is fixed, so that nobody picks the prettiest. Of the tasks that were solved
only after a rollback and have at most `limit` branches,
the one with the most branches; of several, the first by id.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from leafe.core import Episode, Stop, Tree, Turn
from leafe.report._format import clip

BRANCH_LIMIT = 6

_GREEN, _RED, _GREY, _ORANGE, _BLUE, _PURPLE = (
    "#009E73",
    "#D55E00",
    "#666666",
    "#B07800",
    "#0072B2",
    "#8A3A76",
)
OUTCOMES: dict[Stop, tuple[str, str]] = {
    Stop.success: (_GREEN, "tick"),
    Stop.failure: (_RED, "cross"),
    Stop.horizon: (_GREY, "square"),
    Stop.invalid_limit: (_ORANGE, "triangle"),
    Stop.context_full: (_PURPLE, "square"),
    Stop.budget: (_GREY, "bars"),
    Stop.diverged: (_PURPLE, "diamond"),
    Stop.env_error: (_PURPLE, "diamond"),
    Stop.policy_error: (_PURPLE, "diamond"),
}
"""Colour and shape of an episode's end. Each stop is also written out beside its mark."""

_PAGE, _LEFT, _RIGHT, _TOP = 990, 66, 130, 16
_LINE, _RADIUS = 15, 11  # height of a text line, radius of a node
_NOTE = 7.0  # width of a note's character
_TURN = 16.0  # how far right of a node its rollback's line goes down


def pick_tree(trees: Iterable[Tree], limit: int = BRANCH_LIMIT) -> Tree | None:
    """The tree to draw, by the rule above; where no task was solved by a rollback, the same among
    all with a branch. None: nothing branched."""
    best: tuple[tuple[bool, int, str], Tree] | None = None
    for tree in trees:
        branches = len(tree.branches())
        if 0 < branches <= limit:
            rank = (not rescued(tree), -branches, tree.task.id)
            if best is None or rank < best[0]:
                best = (rank, tree)
    return best[1] if best else None


def rescued(tree: Tree) -> bool:
    """The task was solved, and only after a rollback."""
    return tree.solved and min(e.depth for e in tree.successes()) > 0


def draw_tree(tree: Tree, episodes: Sequence[Episode] | None = None) -> Markup:
    """The tree, or these episodes of it (each after the one that it branches off), as inline SVG.
    Texts are shortened to fit, longer in the tips; all of
    them are escaped."""
    return _Drawing(tree, tree.rollouts if episodes is None else episodes).svg()


@dataclass(frozen=True, slots=True)
class _Row:
    """Where an episode stands in the drawing."""

    episode: Episode
    acts: tuple[Turn, ...]
    note: list[str]
    """The words of the reflection that asked for it, in lines."""
    top: float
    """Of the note."""
    y: float
    """Of the nodes."""


class _Drawing:
    def __init__(self, tree: Tree, episodes: Sequence[Episode]) -> None:
        self.tree = tree
        steps = max((t.step for e in episodes for t in e.acts), default=0) + 1
        self.column = min(84.0, max(64.0, (_PAGE - _LEFT - _RIGHT) / steps))
        """Width of a step: narrower where that fits a long episode on the page."""
        self.letters = int(self.column / 7.4)
        """Characters of an action's line."""
        self.rows: list[_Row] = []
        self.height = float(_TOP)
        for episode in episodes:
            self._add_row(episode)
        self.width = _LEFT + steps * self.column + _RIGHT
        self.width = max(
            [
                self.width,
                *(
                    self._note_place(row)[0] + self._note_width(row) + 12
                    for row in self.rows
                    if self._note_place(row)[1] == "start"
                ),
            ]
        )
        self.where: dict[str | None, tuple[float, float]] = {
            None: (_LEFT - 34.0, self.rows[0].y if self.rows else 0.0)
        }
        for row in self.rows:
            self.where |= {turn.id: (self._x(turn.step), row.y) for turn in row.acts}

    def svg(self) -> Markup:
        edges = [edge for row in self.rows for edge in self._edges(row)]
        marks = [self._root()]
        for row in self.rows:
            marks += [
                self._node(turn, row, i == 0 and row.episode.experience is not None)
                for i, turn in enumerate(row.acts)
            ]
            marks += [self._outcome(row), self._note(row)]
        label = f"Exploration tree of task {self.tree.task.id}"
        head = Markup(
            '<svg class="tree" role="img" viewBox="0 0 {0} {1}" '
            'style="width:{0}px;max-width:max(100%,{3}px)" '
            'aria-label="{2}"><title>{2}</title>'
        )
        return Markup("").join(
            [
                head.format(
                    f"{self.width:.0f}", f"{self.height:.0f}", label, f"{0.8 * self.width:.0f}"
                ),
                *edges,
                *marks,
                Markup("</svg>"),
            ]
        )

    def _x(self, step: int) -> float:
        return _LEFT + (step + 0.5) * self.column

    def _add_row(self, episode: Episode) -> None:
        note: list[str] = []
        if episode.experience is not None:
            reflection = self.tree[episode.experience]
            note = _wrapped(f"Back to step {reflection.target}: “{reflection.note}”", 56, 4)
        acts, top = episode.acts, self.height
        tallest = max((len(_wrapped(_label(t), self.letters, 2)) for t in acts), default=1)
        y = top + (len(note) * _LINE + 8 if note else 0) + tallest * _LINE + _RADIUS + 6
        self.rows.append(_Row(episode, acts, note, top, y))
        self.height = y + _RADIUS + 22

    def _edges(self, row: _Row) -> list[Markup]:
        """From the turn before to the row's first node, along the row, and the dashed line of the
        rollback that asked for it."""
        if not row.acts:
            return []
        x, y = self.where.get(row.episode.start, self.where[None])
        first, last = self._x(row.acts[0].step), self._x(row.acts[-1].step)
        turn = x + 22
        down = (
            ""
            if y == row.y
            else f"H{turn:.0f}V{row.y - 12:.0f}Q{turn:.0f},{row.y:.0f} {turn + 12:.0f},{row.y:.0f}"
        )
        out = [Markup('<path class="edge" d="{}"/>').format(f"M{x:.0f},{y:.0f}{down}H{last:.0f}")]
        if row.episode.experience is not None:
            x, y = self.where[self.tree[row.episode.experience].parent]
            x, line = x + _TURN, row.top + len(row.note) * _LINE + 3
            path = (
                f"M{x - 6:.0f},{y + 9:.0f}Q{x:.0f},{y + 12:.0f} "
                f"{x:.0f},{y + 20:.0f}V{line - 8:.0f}Q{x:.0f},{line:.0f} {x - 8:.0f},{line:.0f}"
            )
            path += f"H{first + 8:.0f}Q{first:.0f},{line:.0f} {first:.0f},{line + 7:.0f}"
            out.append(Markup('<path class="rollback" d="{}"/>').format(path))
        return out

    def _root(self) -> Markup:
        x, y = self.where[None]
        root = Markup(
            '<circle cx="{0}" cy="{1}" r="5" fill="#222"/><text class="small" x="{0}" '
            'y="{2}" text-anchor="middle">start</text>'
        )
        return root.format(f"{x:.0f}", f"{y:.0f}", f"{y + 22:.0f}")

    def _node(self, turn: Turn, row: _Row, revised: bool) -> Markup:
        x = self._x(turn.step)
        tip = f"step {turn.step}: {clip(turn.action_text, 300)}\n→ {clip(turn.observation, 300)}"
        kind = "node" + ("" if turn.valid else " invalid") + (" revised" if revised else "")
        parts = [
            Markup('<g class="{}"><title>{}</title><circle cx="{}" cy="{}" r="{}"/>').format(
                kind, tip, f"{x:.0f}", f"{row.y:.0f}", _RADIUS
            )
        ]
        parts.append(
            Markup('<text class="step" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                f"{x:.0f}", f"{row.y + 4:.0f}", turn.step
            )
        )
        lines = _wrapped(_label(turn), self.letters, 2)
        for i, line in enumerate(lines):
            y = row.y - _RADIUS - 7 - (len(lines) - 1 - i) * _LINE
            parts.append(
                Markup('<text class="action" x="{}" y="{}" text-anchor="middle">{}</text>').format(
                    f"{x:.0f}", f"{y:.0f}", line
                )
            )
        parts.append(Markup("</g>"))
        return Markup("").join(parts)

    def _outcome(self, row: _Row) -> Markup:
        """The mark and the name of the stop, after the row's last node."""
        stop = row.episode.stop
        x = (self._x(row.acts[-1].step) if row.acts else self.where[row.episode.start][0]) + 30
        tip = row.episode.error or (row.acts[-1].observation if row.acts else "")
        text = Markup('<text class="outcome" x="{}" y="{}">{}<title>{}</title></text>')
        return outcome_mark(stop, x, row.y) + text.format(
            f"{x + 13:.0f}", f"{row.y + 4:.0f}", str(stop).replace("_", " "), clip(tip, 300)
        )

    def _note_width(self, row: _Row) -> float:
        return max(map(len, row.note), default=0) * _NOTE

    def _note_place(self, row: _Row) -> tuple[float, str]:
        """(x, text-anchor) of the reflection's words: right of the rollback's line where the page
        has room, else left of it; never across it."""
        if not row.note or row.episode.experience is None:
            return 0.0, "none"
        line = self._x(self.tree[row.episode.experience].step - 1) + _TURN
        if line + 10 + self._note_width(row) > _PAGE and line - 10 - self._note_width(row) > _LEFT:
            return line - 10, "end"
        return line + 10, "start"

    def _note(self, row: _Row) -> Markup:
        x, anchor = self._note_place(row)
        span = Markup('<tspan x="{}" y="{}">{}</tspan>')
        spans = [
            span.format(f"{x:.0f}", f"{row.top + 11 + i * _LINE:.0f}", line)
            for i, line in enumerate(row.note)
        ]
        return (
            Markup('<text class="note" text-anchor="{}">').format(anchor)
            + Markup("").join(spans)
            + Markup("</text>")
            if spans
            else Markup("")
        )


def _label(turn: Turn) -> str:
    return turn.action.strip() or turn.action_text.strip() or "(nothing)"


def outcome_mark(stop: Stop, x: float, y: float, r: float = 7.0) -> Markup:
    """The mark of a stop around (x, y)."""
    colour, shape = OUTCOMES[stop]
    if shape == "tick":
        mark = Markup(
            '<circle cx="{0}" cy="{1}" r="{2}" fill="{3}"/><path d="M{4},{1}l2.4,3 4.4,-6" '
            'stroke="white" stroke-width="2" fill="none"/>'
        )
        return mark.format(f"{x:.1f}", f"{y:.1f}", r, colour, f"{x - 3.4:.1f}")
    paths = {
        "cross": f"M{x - r * 0.75:.1f},{y - r * 0.75:.1f}l{r * 1.5},{r * 1.5}m0,{-r * 1.5}l{-r * 1.5},{r * 1.5}",
        "square": f"M{x - r * 0.8:.1f},{y - r * 0.8:.1f}h{r * 1.6}v{r * 1.6}h{-r * 1.6}z",
        "triangle": f"M{x:.1f},{y - r:.1f}l{r},{r * 1.8}h{-r * 2}z",
        "bars": f"M{x - r * 0.4:.1f},{y - r * 0.8:.1f}v{r * 1.6}m{r * 0.8},0v{-r * 1.6}",
        "diamond": f"M{x:.1f},{y - r:.1f}l{r},{r}l{-r},{r}l{-r},{-r}z",
    }
    filled = shape not in ("cross", "bars")
    return Markup('<path d="{}" stroke="{}" stroke-width="3" fill="{}"/>').format(
        paths[shape], colour, colour if filled else "none"
    )


def _wrapped(text: str, columns: int, lines: int) -> list[str]:
    """At most `lines` lines of at most `columns` characters; what is left out is marked."""
    out = textwrap.wrap(" ".join(text[: 4 * columns * lines].split()), columns)
    if len(out) > lines:
        out = [*out[: lines - 1], out[lines - 1][: columns - 1].rstrip() + "…"]
    return out
