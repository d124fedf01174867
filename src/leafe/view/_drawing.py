"""A task's tree as a drawing: a row an episode, a column a step, every node a link to its turn.

A branch stands under the episode that it left; its line leaves that one's after the step before.
The dashed line is the rollback: from the reflection back to the step that it blames, where the
revised action stands. How an episode ended has a colour and a shape, and is written beside it. Long
and wide trees are drawn closer, and past a bound only the chosen episode has all its nodes, so that
the page stays small.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from markupsafe import Markup

from leafe.core import Episode, Kind, Stop, Tree, Turn
from leafe.report import stop_name
from leafe.view._text import one_line

SHAPES: dict[Stop, str] = {
    Stop.success: "tick",
    Stop.failure: "cross",
    Stop.horizon: "square",
    Stop.invalid_limit: "triangle",
    Stop.context_full: "square",
    Stop.budget: "bars",
    Stop.diverged: "diamond",
    Stop.env_error: "diamond",
    Stop.policy_error: "diamond",
}
"""The shape of an episode's end, as in the report; its colour is the stylesheet's."""
MOST_ROWS = 60
_MOST_NODES = 320
_LEFT, _TOP, _ROOT = 74.0, 26.0, 58.0
_LETTER = 6.1
"""Width of a label's character, about."""


@dataclass(frozen=True, slots=True)
class Lane:
    """An episode's row in the drawing: its number from 0, and the index of the episode that it
    branched off."""

    nth: int
    episode: Episode
    above: int | None


def lanes(tree: Tree) -> list[Lane]:
    """The episodes, each below the one that it left, and among those in the order in which they
    were made."""
    below: dict[int | None, list[tuple[Episode, int | None]]] = {}
    for episode in tree.rollouts:
        link = episode.start or episode.experience
        above = tree.rollout_of(link).index if link is not None else None
        below.setdefault(above, []).append((episode, above))
    out: list[Lane] = []
    waiting = list(reversed(below.get(None, [])))
    while waiting:
        episode, above = waiting.pop()
        out.append(Lane(len(out), episode, above))
        waiting += reversed(below.get(episode.index, []))
    return out


def mark(stop: Stop, x: float = 8, y: float = 8) -> Markup:
    """The mark of a stop around (x, y), by a shape of `symbols`."""
    return Markup('<use href="#{}" class="mark o-{}" x="{:.0f}" y="{:.0f}"/>').format(
        SHAPES[stop], stop, x, y
    )


def symbols() -> Markup:
    """The shapes, once for a page."""
    return Markup(
        '<svg class="symbols" aria-hidden="true"><defs>'
        '<g id="tick"><circle r="6.5"/><path class="m-hole" d="M-3,0 l2.2,2.6 4,-5.4"/></g>'
        '<g id="cross"><path class="m-line" d="M-5,-5 l10,10 m0,-10 l-10,10"/></g>'
        '<g id="square"><path d="M-5.5,-5.5 h11 v11 h-11z"/></g>'
        '<g id="triangle"><path d="M0,-6.5 l6.5,11.5 h-13z"/></g>'
        '<g id="bars"><path class="m-line" d="M-3,-5.5 v11 m6,0 v-11"/></g>'
        '<g id="diamond"><path d="M0,-7 l7,7 -7,7 -7,-7z"/></g>'
        "</defs></svg>"
    )


class Drawing:
    """The rows around the chosen turn, at most `MOST_ROWS` of them.

    Args:
        tree: The task's tree.
        order: All its rows.
        chosen: The turn that the page shows.
        link: The address of a turn.
        parts: By turn, the parts of a training set that it is in.
        shown: The episode whose trajectory the page shows.
    """

    def __init__(
        self,
        tree: Tree,
        order: Sequence[Lane],
        chosen: Turn | None,
        link: Callable[[Turn], str],
        parts: Mapping[str, Collection[str]],
        shown: Episode | None,
    ) -> None:
        self.tree, self.chosen, self.link, self.parts, self.shown = tree, chosen, link, parts, shown
        index = shown.index if shown is not None else None
        here = next((row.nth for row in order if row.episode.index == index), 0)
        first = max(0, min(here - MOST_ROWS // 2, len(order) - MOST_ROWS))
        self.order = order[first : first + MOST_ROWS]
        acts = (turn.step for row in self.order for turn in row.episode.acts)
        self.steps = max(acts, default=0) + 1
        self.column = min(104.0, max(19.0, 840.0 / self.steps))
        self.labelled = self.column >= 60
        self.radius = 7.0 if self.column >= 30 else 5.0
        self.all_nodes = sum(len(row.episode.turns) for row in self.order) <= _MOST_NODES
        top, height = (_TOP + 24, 48.0) if self.labelled else (_TOP + 14, 27.0)
        self.y = {row.episode.index: top + i * height for i, row in enumerate(self.order)}
        self.on_path = {turn.id for turn in self.path}
        if shown is not None and shown.experience is not None:
            self.on_path.add(shown.experience)

    @cached_property
    def path(self) -> list[Turn]:
        """The chosen trajectory."""
        return self.tree.trajectory(self.shown) if self.shown is not None else []

    def svg(self) -> Markup:
        few = len(self.order) <= 14
        ends = [self._end(row.episode) for row in self.order]
        width = max((right for _, right in ends), default=0.0)
        height = max(self.y.values(), default=_TOP) + (26 if self.labelled else 20)
        head = Markup(
            '<svg class="tree{}" role="group" aria-label="{}" width="{w:.0f}" height="{h:.0f}" '
            'viewBox="0 0 {w:.0f} {h:.0f}">'
        ).format(
            "" if self.labelled else " close",
            f"Exploration tree of task {one_line(self.tree.task.id, 80)}: {len(self.order)} of "
            f"{len(self.tree.rollouts)} episodes",
            w=width,
            h=height,
        )
        parts = [head, self._axis()]
        parts += [self._edge(row.episode) for row in self.order]
        parts.append(self._chosen_line())
        parts += [
            self._rollback(row.episode) for row in self.order if few or row.episode is self.shown
        ]
        for row, (end, _) in zip(self.order, ends, strict=True):
            parts += [*self._nodes(row.episode), end]
        return Markup("").join([*parts, Markup("</svg>")])

    def _x(self, step: int) -> float:
        return _LEFT + (step + 0.5) * self.column

    def _axis(self) -> Markup:
        every = max(1, round(26 / self.column + 0.49))
        numbers = [
            Markup('<text class="axis" x="{:.0f}" y="14" text-anchor="middle">{}</text>').format(
                self._x(step), f"step {step}" if step == 0 else step
            )
            for step in range(0, self.steps, every)
        ]
        return Markup("").join(numbers)

    def _enter(self, episode: Episode) -> str:
        """The way from where the episode begins to its first node: from the turn before, or from
        the root."""
        y = self.y[episode.index]
        if episode.start is None:
            top = min(self.y.values())
            return (
                f"M{_ROOT:.0f},{y:.0f}"
                if y == top
                else f"M{_ROOT:.0f},{top:.0f}V{y - 6:.0f}q0,6 6,6"
            )
        before = self.tree[episode.start]
        above = self.y.get(
            self.tree.episode_of(before.id).index, _TOP - 8
        )  # its row may not be among those that are drawn
        x = self._x(before.step)
        turn = x + self.column / 2
        return (
            f"M{x:.0f},{above:.0f}H{turn - 6:.0f}q6,0 6,6V{y - 6:.0f}q0,6 6,6"
            if above != y
            else f"M{x:.0f},{y:.0f}"
        )

    def _edge(self, episode: Episode) -> Markup:
        if not episode.acts:
            return Markup("")
        edge = Markup('<path class="edge" d="{}H{:.0f}"/>')
        return edge.format(self._enter(episode), self._x(episode.acts[-1].step))

    def _chosen_line(self) -> Markup:
        """The chosen trajectory, from the root to its end."""
        out = []
        path = [turn for turn in self.path if self.tree.episode_of(turn.id).index in self.y]
        for i, turn in enumerate(path):
            episode = self.tree.episode_of(turn.id)
            if i == 0 or episode is not self.tree.episode_of(path[i - 1].id):
                last = [t for t in path if self.tree.episode_of(t.id) is episode][-1]
                out.append(f"{self._enter(episode)}H{self._x(last.step):.0f}")
        return Markup('<path class="chosen" d="{}"/>').format(" ".join(out)) if out else Markup("")

    def _rollback(self, episode: Episode) -> Markup:
        if episode.experience is None:
            return Markup("")
        reflection = self.tree[episode.experience]
        above = self.y.get(self.tree.rollout_of(reflection.id).index)
        if above is None or reflection.target is None:
            return Markup("")
        x, y, back = (
            self._reflection_x(reflection),
            self.y[episode.index],
            self._x(reflection.target),
        )
        line = y - (29 if self.labelled else 13)
        end = y - self.radius - (16 if self.labelled else 3)
        on = " on" if episode is self.shown else ""
        return Markup(
            '<path class="rollback{}" d="M{:.0f},{:.0f}V{:.0f}q0,5 -5,5H{:.0f}q-5,0 -5,5V{:.0f}"/>'
        ).format(on, x, above + 7, line - 5, back + 5, max(end, line + 5))

    def _reflection_x(self, reflection: Turn) -> float:
        tries = [
            t.id
            for t in self.tree.episode_of(reflection.id).turns
            if t.kind is not Kind.act and t.parent == reflection.parent
        ]
        return (
            self._x(reflection.step - 1)
            + max(self.column / 2, self.radius + 9)
            + 13 * tries.index(reflection.id)
        )

    def _nodes(self, episode: Episode) -> list[Markup]:
        every = self.all_nodes or episode is self.shown
        revised = episode.acts[0].id if episode.experience is not None and episode.acts else None
        out = []
        for turn in self.tree.turns_of(episode):
            if not (every or turn.id == revised or turn.id in self.on_path):
                continue
            out.append(
                self._act(turn, turn.id == revised) if turn.kind is Kind.act else self._note(turn)
            )
        return out

    def _act(self, turn: Turn, revised: bool) -> Markup:
        x, y = self._x(turn.step), self.y[self.tree.episode_of(turn.id).index]
        action = turn.action or turn.action_text
        tip = f"step {turn.step}: {one_line(action, 90)} → {one_line(turn.observation, 110)}"
        inside = Markup("")
        if self.labelled:
            label = one_line(action, int(self.column / _LETTER)) or "(nothing)"
            inside = Markup(
                '<text class="label" x="{:.0f}" y="{:.0f}" text-anchor="middle">{}</text>'
            ).format(x, y - self.radius - 5, label)
        inside += Markup('<circle cx="{:.0f}" cy="{:.0f}" r="{:.0f}"/>').format(x, y, self.radius)
        if not turn.valid:
            inside += Markup('<path class="slash" d="M{:.0f},{:.0f}l6,-6"/>').format(x - 3, y + 3)
        inside += self._part_marks(sorted(self.parts.get(turn.id, ())), x, y)
        return self._linked(turn, "node", revised, tip, inside)

    def _note(self, turn: Turn) -> Markup:
        """A reflection's mark, or an aside's."""
        x, y = self._reflection_x(turn), self.y[self.tree.rollout_of(turn.id).index]
        name = "reflection" if turn.kind is Kind.reflect else turn.action or "aside"
        unusable = "" if turn.valid else f", unusable: {one_line(turn.observation, 120)}"
        text = one_line(turn.note or turn.action_text, 160)
        inside = Markup(
            '<rect x="{:.1f}" y="{:.1f}" width="11" height="11" rx="3"/>'
            '<text class="letter" x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>'
        ).format(
            *(x - 5.5, y - 5.5, x, y + 3.2),
            "!" if not turn.valid else "R" if turn.kind is Kind.reflect else "a",
        )
        if "reflection" in self.parts.get(turn.id, ()):
            inside += self._part_marks(["reflection"], x, y)
        tip = f"{name} after {turn.step} actions{unusable}: {text}"
        return self._linked(turn, "said", False, tip, inside)

    def _part_marks(self, parts: Sequence[str], x: float, y: float) -> Markup:
        """A bar below the node for each part of a training set that the turn is in."""
        bar = Markup('<rect class="{}" x="{:.0f}" y="{:.0f}" width="10" height="3"/>')
        return Markup("").join(
            bar.format(part, x - 5, y + self.radius + 3 + 4 * i) for i, part in enumerate(parts)
        )

    def _linked(self, turn: Turn, kind: str, revised: bool, tip: str, inside: Markup) -> Markup:
        chosen = self.chosen is not None and turn.id == self.chosen.id
        marks = " bad" * (not turn.valid) + " revised" * revised + " here" * chosen
        here = Markup(' id="here" aria-current="true"' if chosen else ' tabindex="-1"')
        return Markup('<a class="{}" href="{}" aria-label="{}"{}><title>{}</title>{}</a>').format(
            kind + marks, self.link(turn), one_line(tip, 60), here, tip, inside
        )

    def _end(self, episode: Episode) -> tuple[Markup, float]:
        """The row's number before it, the mark and the words after it; and where these end."""
        y, stop = self.y[episode.index], stop_name(episode.stop)
        shown = " on" if episode is self.shown else ""
        times = f" ×{episode.count}" if episode.count > 1 else ""
        acts = self.tree.trajectory(episode)
        x = (self._x(acts[-1].step) if acts else _ROOT) + self.radius + 4
        notes = [turn for turn in self.tree.turns_of(episode) if turn.kind is not Kind.act]
        last = episode.acts[-1].id if episode.acts else ""
        x = max([x, *(self._reflection_x(t) + 7 for t in notes if last and t.parent == last)]) + 10
        cause = ""
        if episode.experience is not None:
            reflection = self.tree[episode.experience]
            cause = one_line(f"  ↶ step {reflection.target}: {reflection.note}", 64)
        elif episode.preamble:
            cause = one_line(f"  with {len(episode.preamble)} earlier feedback", 64)
        number = Markup('<text class="number{}" x="6" y="{:.0f}">#{}{}</text>')
        label = Markup(
            '<text class="end{}" x="{:.0f}" y="{:.0f}">{}<tspan class="cause" dx="8">{}</tspan>'
            "</text>"
        )
        return (
            number.format(shown, y + 4, episode.index, times)
            + mark(episode.stop, x, y)
            + label.format(shown, x + 12, y + 4, stop, cause),
            x + 24 + (len(stop) + len(cause)) * 6.6,
        )
