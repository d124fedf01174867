"""One exploration tree as a drawing: a row is an episode, a node is a turn at its step, a dashed
line is a rollback.

Which tree is fixed by a rule, so that nobody picks the prettiest: of the tasks that were solved
only after a rollback and have at most `limit` branches, the one with the most branches; of several,
the first by id.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from leafe.core import Episode, Stop, Tree, Turn
from leafe.report._format import clip

BRANCH_LIMIT = 6

_GREEN, _RED, _GREY, _ORANGE, _PURPLE = "#009E73", "#D55E00", "#666666", "#B07800", "#8A3A76"
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
    """The tree to draw, by the rule of this module.

    Args:
        trees: Of one exploration; gone through once.
        limit: The most branches of a tree.

    Returns:
        The tree; where no task was solved by a rollback, one of the others by the same rule; None
        where no tree has a branch.
    """
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
    """Draw a tree as inline SVG.

    Args:
        tree: The tree.
        episodes: Some of its episodes, each after the one that it branches off; default: all.

    Returns:
        An svg element. Texts are escaped, and shortened to fit; tips hold more of them.
    """
    return _Drawing(tree, tree.rollouts if episodes is None else episodes).svg()


def stop_name(stop: Stop) -> str:
    """The stop in words."""
    return str(stop).replace("_", " ")


@dataclass(frozen=True, slots=True)
class _PlacedEpisode:
    """An episode and its place: `note` are the lines of the reflection that it follows, `top` is
    the height of the note, `y` that of the nodes."""

    episode: Episode
    acts: tuple[Turn, ...]
    note: list[str]
    top: float
    y: float


class _Drawing:
    def __init__(self, tree: Tree, episodes: Sequence[Episode]) -> None:
        self.tree = tree
        steps = max((t.step for e in episodes for t in e.acts), default=0) + 1
        # width of a step: narrower where that fits a long episode on the page
        self.column = min(84.0, max(64.0, (_PAGE - _LEFT - _RIGHT) / steps))
        self.letters = int(self.column / 7.4)  # of a line of an action
        self.rows: list[_PlacedEpisode] = []
        self.height = float(_TOP)
        for episode in episodes:
            self._add_row(episode)
        notes = ((row, *self._note_place(row)) for row in self.rows)
        ends = (x + self._note_width(row) + 12 for row, x, side in notes if side == "start")
        self.width = max([_LEFT + steps * self.column + _RIGHT, *ends])
        self.where: dict[str | None, tuple[float, float]] = {
            None: (_LEFT - 34.0, self.rows[0].y if self.rows else 0.0)
        }
        for row in self.rows:
            self.where |= {turn.id: (self._x(turn.step), row.y) for turn in row.acts}

    def svg(self) -> Markup:
        marks = [self._root()]
        for row in self.rows:
            revised = row.acts[:1] if row.episode.experience is not None else ()
            marks += [self._node(turn, row, turn in revised) for turn in row.acts]
            marks += [self._outcome(row), self._note(row)]
        head = Markup(
            '<svg class="tree" role="img" viewBox="0 0 {0:.0f} {1:.0f}" '
            'style="width:{0:.0f}px;max-width:max(100%,{3:.0f}px)" '
            'aria-label="{2}"><title>{2}</title>'
        ).format(
            self.width,
            self.height,
            f"Exploration tree of task {self.tree.task.id}",
            0.8 * self.width,
        )
        edges = [edge for row in self.rows for edge in self._edges(row)]
        return Markup("").join([head, *edges, *marks, Markup("</svg>")])

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
        self.rows.append(_PlacedEpisode(episode, acts, note, top, y))
        self.height = y + _RADIUS + 22

    def _edges(self, row: _PlacedEpisode) -> list[Markup]:
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
        return Markup(
            '<circle cx="{0:.0f}" cy="{1:.0f}" r="5" fill="#222"/><text class="small" x="{0:.0f}" '
            'y="{2:.0f}" text-anchor="middle">start</text>'
        ).format(x, y, y + 22)

    def _node(self, turn: Turn, row: _PlacedEpisode, revised: bool) -> Markup:
        x, lines = self._x(turn.step), _wrapped(_label(turn), self.letters, 2)
        top = row.y - _RADIUS - 7 - (len(lines) - 1) * _LINE
        text = Markup('<text class="action" x="{:.0f}" y="{:.0f}" text-anchor="middle">{}</text>')
        return Markup(
            '<g class="{}"><title>{}</title><circle cx="{x:.0f}" cy="{:.0f}" r="{}"/>'
            '<text class="step" x="{x:.0f}" y="{:.0f}" text-anchor="middle">{}</text>{}</g>'
        ).format(
            "node" + ("" if turn.valid else " invalid") + (" revised" if revised else ""),
            f"step {turn.step}: {clip(turn.action_text, 300)}\n→ {clip(turn.observation, 300)}",
            *(row.y, _RADIUS, row.y + 4, turn.step),
            Markup("").join(text.format(x, top + i * _LINE, line) for i, line in enumerate(lines)),
            x=x,
        )

    def _outcome(self, row: _PlacedEpisode) -> Markup:
        """The mark and the name of the stop, after the row's last node."""
        stop = row.episode.stop
        x = (self._x(row.acts[-1].step) if row.acts else self.where[row.episode.start][0]) + 30
        tip = row.episode.error or (row.acts[-1].observation if row.acts else "")
        text = Markup(
            '<text class="outcome" x="{:.0f}" y="{:.0f}">{}<title>{}</title></text>'
        ).format(x + 13, row.y + 4, stop_name(stop), clip(tip, 300))
        return outcome_mark(stop, x, row.y) + text

    def _note_width(self, row: _PlacedEpisode) -> float:
        return max(map(len, row.note), default=0) * _NOTE

    def _note_place(self, row: _PlacedEpisode) -> tuple[float, str]:
        """(x, text-anchor) of the reflection's words: right of the rollback's line where the page
        has room, else left of it; never across it."""
        if not row.note or row.episode.experience is None:
            return 0.0, "none"
        line = self._x(self.tree[row.episode.experience].step - 1) + _TURN
        if line + 10 + self._note_width(row) > _PAGE and line - 10 - self._note_width(row) > _LEFT:
            return line - 10, "end"
        return line + 10, "start"

    def _note(self, row: _PlacedEpisode) -> Markup:
        if not row.note:
            return Markup("")
        x, anchor = self._note_place(row)
        span = Markup('<tspan x="{:.0f}" y="{:.0f}">{}</tspan>')
        spans = (span.format(x, row.top + 11 + i * _LINE, line) for i, line in enumerate(row.note))
        return Markup('<text class="note" text-anchor="{}">{}</text>').format(
            anchor, Markup("").join(spans)
        )


def _label(turn: Turn) -> str:
    return turn.action.strip() or turn.action_text.strip() or "(nothing)"


def outcome_mark(stop: Stop, x: float, y: float, r: float = 7.0) -> Markup:
    """The mark of a stop around (x, y)."""
    colour, shape = OUTCOMES[stop]
    if shape == "tick":
        return Markup(
            '<circle cx="{0:.1f}" cy="{1:.1f}" r="{2}" fill="{3}"/><path d="M{4:.1f},{1:.1f}'
            'l2.4,3 4.4,-6" stroke="white" stroke-width="2" fill="none"/>'
        ).format(x, y, r, colour, x - 3.4)
    near, wide = r * 0.75, r * 1.5
    paths = {
        "cross": f"M{x - near:.1f},{y - near:.1f}l{wide},{wide}m0,{-wide}l{-wide},{wide}",
        "square": f"M{x - r * 0.8:.1f},{y - r * 0.8:.1f}h{r * 1.6}v{r * 1.6}h{-r * 1.6}z",
        "triangle": f"M{x:.1f},{y - r:.1f}l{r},{r * 1.8}h{-r * 2}z",
        "bars": f"M{x - r * 0.4:.1f},{y - r * 0.8:.1f}v{r * 1.6}m{r * 0.8},0v{-r * 1.6}",
        "diamond": f"M{x:.1f},{y - r:.1f}l{r},{r}l{-r},{r}l{-r},{-r}z",
    }
    fill = "none" if shape in ("cross", "bars") else colour
    return Markup('<path d="{}" stroke="{}" stroke-width="3" fill="{}"/>').format(
        paths[shape], colour, fill
    )


def _wrapped(text: str, columns: int, lines: int) -> list[str]:
    """At most `lines` lines of at most `columns` characters; what is left out is marked."""
    out = textwrap.wrap(" ".join(text[: 4 * columns * lines].split()), columns)
    if len(out) > lines:
        out = [*out[: lines - 1], out[lines - 1][: columns - 1].rstrip() + "…"]
    return out
