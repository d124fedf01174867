"""One exploration tree as a drawing: an episode is a row, a turn is a node at its step, a rollback is a dashed line back to where it was tried again.

Which tree: the rule is fixed, so that nobody picks the prettiest. Of the tasks that were solved only after a rollback and have at most `limit` branches,
the one with the most branches; of several, the first by id.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from leafe.core import Episode, Stop, Tree, Turn

BRANCH_LIMIT = 6

_GREEN, _RED, _GREY, _ORANGE, _BLUE, _PURPLE = "#009E73", "#D55E00", "#666666", "#B07800", "#0072B2", "#8A3A76"
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

_COLUMN, _LEFT, _RIGHT, _TOP = 78, 66, 130, 16
_LABEL, _LINE, _NODE = 11, 15, 11  # characters of an action's line; height of a text line; radius


def pick_tree(trees: Iterable[Tree], limit: int = BRANCH_LIMIT) -> Tree | None:
    """The tree to draw, by the rule above; where no task was solved by a rollback, the same among all with a branch. None: nothing branched."""
    branched = sorted(((t, len(t.branches())) for t in trees), key=lambda pair: pair[0].task.id)
    branched = [(t, n) for t, n in branched if 0 < n <= limit]
    best = max([(t, n) for t, n in branched if rescued(t)] or branched, key=lambda pair: pair[1], default=None)  # max keeps the first of equals
    return best[0] if best else None


def rescued(tree: Tree) -> bool:
    """The task was solved, and only after a rollback."""
    return tree.solved and min(e.depth for e in tree.successes()) > 0


@dataclass(frozen=True, slots=True)
class _Row:
    """Where an episode stands in the drawing."""

    episode: Episode
    acts: tuple[Turn, ...]
    first_step: int
    note: list[str]
    y: float
    """Of its nodes."""
    top: float
    """Of its note."""


def draw_tree(tree: Tree) -> Markup:
    """The tree as inline SVG. Texts are shortened to fit, and whole in the tips; all of them are escaped."""
    steps = max((t.step for e in tree.episodes for t in e.acts), default=0) + 1
    width = _LEFT + steps * _COLUMN + _RIGHT
    rows, height = _rows(tree, width)
    where: dict[str | None, tuple[float, float]] = {None: (_LEFT - 34.0, rows[0].y)}
    for row in rows:
        for turn in row.acts:
            where[turn.id] = (_x(turn.step), row.y)
    lines, marks = [], [_root(*where[None])]
    for row in rows:
        lines += _edges(tree, row, where)
        marks += [_node(turn, row, i == 0 and row.episode.experience is not None) for i, turn in enumerate(row.acts)]
        marks.append(_outcome(row))
        if row.note:
            marks.append(_note(row, width))
    label = f"Exploration tree of task {tree.task.id}"
    head = Markup('<svg class="tree" role="img" viewBox="0 0 {} {}" style="width:{}px" aria-label="{}"><title>{}</title>')
    return Markup("").join([head.format(width, f"{height:.0f}", width, label, label), *lines, *marks, Markup("</svg>")])


def _x(step: int) -> float:
    return _LEFT + step * _COLUMN + _COLUMN / 2


def _rows(tree: Tree, width: float) -> tuple[list[_Row], float]:
    rows: list[_Row] = []
    y = float(_TOP)
    for episode in tree.episodes:
        acts = episode.acts
        first = tree[episode.start].step + 1 if episode.start is not None else 0
        note: list[str] = []
        if episode.experience is not None:
            reflection = tree[episode.experience]
            text = f"Back to step {reflection.target}: “{' '.join(reflection.note.split())}”"
            note = _wrapped(text, max(40, int((width - 60) / 6.6)), 3)
        top = y
        y += len(note) * _LINE + (8 if note else 0)
        tallest = max((len(_wrapped(_label(t), _LABEL, 2)) for t in acts), default=1)
        y += tallest * _LINE + _NODE + 6
        rows.append(_Row(episode, acts, first, note, y, top))
        y += _NODE + 22
    return rows, y


def _edges(tree: Tree, row: _Row, where: dict[str | None, tuple[float, float]]) -> list[Markup]:
    """From the turn before to the row's first node, along the row, and the dashed line of the rollback that asked for it."""
    out: list[Markup] = []
    if not row.acts:
        return out
    x, y = where[row.episode.start]
    first = _x(row.acts[0].step)
    path = f"M{x:.0f},{y:.0f}"
    path += f"L{first:.0f},{row.y:.0f}" if y == row.y else f"H{x + 22:.0f}V{row.y - 12:.0f}Q{x + 22:.0f},{row.y:.0f} {x + 34:.0f},{row.y:.0f}H{first:.0f}"
    out.append(Markup('<path class="edge" d="{}"/>').format(path))
    if len(row.acts) > 1:
        out.append(Markup('<path class="edge" d="M{},{}H{}"/>').format(f"{first:.0f}", f"{row.y:.0f}", f"{_x(row.acts[-1].step):.0f}"))
    if row.episode.experience is not None:
        read = tree[row.episode.experience].parent
        x, y = where[read]
        x += 15
        line = row.top + len(row.note) * _LINE + 3
        bend = f"M{x - 6:.0f},{y + 9:.0f}Q{x:.0f},{y + 12:.0f} {x:.0f},{y + 20:.0f}V{line - 8:.0f}Q{x:.0f},{line:.0f} {x - 8:.0f},{line:.0f}H{first + 8:.0f}"
        down = f"Q{first:.0f},{line:.0f} {first:.0f},{line + 7:.0f}"
        out.append(Markup('<path class="rollback" d="{}"/>').format(bend + down))
    return out


def _root(x: float, y: float) -> Markup:
    return Markup('<circle cx="{0}" cy="{1}" r="5" fill="#222"/><text class="small" x="{0}" y="{2}" text-anchor="middle">start</text>').format(
        f"{x:.0f}", f"{y:.0f}", f"{y + 22:.0f}"
    )


def _node(turn: Turn, row: _Row, revised: bool) -> Markup:
    x = _x(turn.step)
    tip = f"step {turn.step}: {turn.action_text}\n→ {turn.observation}"[:600]
    kind = "node" + ("" if turn.valid else " invalid") + (" revised" if revised else "")
    parts = [Markup('<g class="{}"><title>{}</title><circle cx="{}" cy="{}" r="{}"/>').format(kind, tip, f"{x:.0f}", f"{row.y:.0f}", _NODE)]
    parts.append(Markup('<text class="step" x="{}" y="{}" text-anchor="middle">{}</text>').format(f"{x:.0f}", f"{row.y + 4:.0f}", turn.step))
    lines = _wrapped(_label(turn), _LABEL, 2)
    for i, line in enumerate(lines):
        y = row.y - _NODE - 7 - (len(lines) - 1 - i) * _LINE
        parts.append(Markup('<text class="action" x="{}" y="{}" text-anchor="middle">{}</text>').format(f"{x:.0f}", f"{y:.0f}", line))
    parts.append(Markup("</g>"))
    return Markup("").join(parts)


def _label(turn: Turn) -> str:
    return " ".join((turn.action or turn.action_text).split()) or "(nothing)"


def _outcome(row: _Row) -> Markup:
    """The mark and the name of the stop, after the row's last node."""
    stop = row.episode.stop
    colour = OUTCOMES[stop][0]
    x = (_x(row.acts[-1].step) if row.acts else _x(row.first_step - 1)) + 30
    text = Markup('<text class="outcome" x="{}" y="{}" fill="{}">{}<title>{}</title></text>')
    tip = row.episode.error or (row.acts[-1].observation if row.acts else "")
    return outcome_mark(stop, x, row.y) + text.format(f"{x + 13:.0f}", f"{row.y + 4:.0f}", colour, str(stop).replace("_", " "), tip)


def outcome_mark(stop: Stop, x: float, y: float, r: float = 7.0) -> Markup:
    """The mark of a stop around (x, y)."""
    colour, shape = OUTCOMES[stop]
    if shape == "tick":
        mark = Markup('<circle cx="{0}" cy="{1}" r="{2}" fill="{3}"/><path d="M{4},{1}l2.4,3 4.4,-6" stroke="white" stroke-width="2" fill="none"/>')
        return mark.format(f"{x:.1f}", f"{y:.1f}", r, colour, f"{x - 3.4:.1f}")
    paths = {
        "cross": f"M{x - r * 0.75:.1f},{y - r * 0.75:.1f}l{r * 1.5},{r * 1.5}m0,{-r * 1.5}l{-r * 1.5},{r * 1.5}",
        "square": f"M{x - r * 0.8:.1f},{y - r * 0.8:.1f}h{r * 1.6}v{r * 1.6}h{-r * 1.6}z",
        "triangle": f"M{x:.1f},{y - r:.1f}l{r},{r * 1.8}h{-r * 2}z",
        "bars": f"M{x - r * 0.4:.1f},{y - r * 0.8:.1f}v{r * 1.6}m{r * 0.8},0v{-r * 1.6}",
        "diamond": f"M{x:.1f},{y - r:.1f}l{r},{r}l{-r},{r}l{-r},{-r}z",
    }
    filled = shape not in ("cross", "bars")
    return Markup('<path d="{}" stroke="{}" stroke-width="3" fill="{}"/>').format(paths[shape], colour, colour if filled else "none")


def _note(row: _Row, width: float) -> Markup:
    """The reflection's words, above the branch that they asked for."""
    longest = max(map(len, row.note)) * 6.6
    x = max(12.0, min(_x(row.first_step) + 4, width - longest - 12))
    spans = [Markup('<tspan x="{}" y="{}">{}</tspan>').format(f"{x:.0f}", f"{row.top + 11 + i * _LINE:.0f}", line) for i, line in enumerate(row.note)]
    return Markup('<text class="note">') + Markup("").join(spans) + Markup("</text>")


def _wrapped(text: str, columns: int, lines: int) -> list[str]:
    return textwrap.wrap(text, columns, max_lines=lines, placeholder="…", break_long_words=True) or [text[: columns - 1] + "…"]
