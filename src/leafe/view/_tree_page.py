"""The page of one task's tree: the drawing, the trajectory of the chosen episode, and the panel of
the chosen turn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

from leafe.core import Episode, Kind, Tree, Turn
from leafe.view._drawing import MOST_ROWS, SHAPES, Drawing, lanes
from leafe.view._links import reference, stage_part, tree_link
from leafe.view._panel import panel
from leafe.view._run import Run
from leafe.view._text import one_line, show
from leafe.view._training import PARTS, Samples, Training

_TRAJECTORY = 120
"""Turns of a trajectory, and in `_TABLE` episodes of a tree, that are shown at a time."""
_TABLE = 100


class NotFound(Exception):
    """The address names something that the run does not have; the message says what."""


def whole_number(text: str) -> int:
    """A number of an address; 0 for anything else."""
    return min(int(text), 10**9) if text.isascii() and text.isdecimal() and len(text) < 12 else 0


def chosen_turn(tree: Tree, ref: str | None) -> Turn | None:
    """The turn that an address names; without a name the one to begin with: the revised action of
    the branch that won, if one did. None where the tree has no turn."""
    if ref:
        for turn in (f"{tree.task.id}/{ref}", ref):
            if turn in tree:
                return tree[turn]
        raise NotFound(
            f"The task {one_line(tree.task.id, 100)!r} has no turn {one_line(ref, 60)!r}."
        )
    won = tree.successes()
    best = [e for e in won if e.experience is not None] or won
    return next((episode.turns[0] for episode in [*best, *tree.rollouts] if episode.turns), None)


class TreePage:
    """What the address of a task's tree chooses, and the values of its template.

    Args:
        run: The run.
        training: What its arms train on.
        stage: The stage's name.
        row: The task's row of the index.
        tree: The task's tree.
        query: Of the address: `turn`, `branch`, `arm`, `from`.
    """

    def __init__(
        self,
        run: Run,
        training: Training,
        stage: str,
        row: Any,
        tree: Tree,
        query: Mapping[str, str],
    ) -> None:
        self.run, self.stage, self.row, self.tree, self.query = run, stage, row, tree, query
        self.order = lanes(tree)
        self.chosen = chosen_turn(tree, query.get("turn"))
        self.shown = self._shown_episode()
        self.prompts = run.prompts(stage)
        self.arms = run.arms(stage)
        last = self.arms[-1] if self.arms else None
        self.arm = next((arm for arm in self.arms if arm.name == query.get("arm")), last)
        self.samples: Samples = {}
        self.why = ""
        """Why training samples are not shown."""
        if self.arm is not None and self.prompts.value is None:
            self.why = self.prompts.why
        elif self.arm is not None and self.prompts.value is not None:
            found = training.samples(stage, tree, self.prompts.value, self.arm)
            self.samples, self.why = found.value or {}, found.why
        self.parts = {
            turn: {each.sample.part for each in samples} for turn, samples in self.samples.items()
        }

    def _shown_episode(self) -> Episode | None:
        """The episode whose trajectory is shown: the chosen turn's, or that of the address where
        the turn is a part of it too (branches share turns)."""
        tree, turn, branch = self.tree, self.chosen, self.query.get("branch", "")
        if branch.isdecimal() and int(branch) < len(tree.episodes):
            asked = tree.episodes[int(branch)]
            asked = tree.rollout_of(asked.turns[0].id) if asked.turns else asked
            if turn is None or turn in (*tree.trajectory(asked), *tree.turns_of(asked)):
                return asked
        if turn is not None:
            return tree.rollout_of(turn.id)
        return self.order[0].episode if self.order else None

    def values(self) -> dict[str, Any]:
        """The values of the template."""
        tree, order, chosen, shown = self.tree, self.order, self.chosen, self.shown
        drawing = Drawing(
            tree, order, chosen, lambda t: "?" + self.link(t).partition("?")[2], self.parts, shown
        )
        parts = self.parts.values()
        return {
            "stage": self.stage,
            "task": self.row,
            "instruction": show(tree.task.instruction, 3000),
            "tree": tree,
            "order": order,
            "chosen": chosen,
            "shown": shown,
            "drawing": drawing.svg() if order else "",
            "drawn": len(drawing.order),
            "most": MOST_ROWS,
            "steps": self._trajectory(),
            "panel": self._panel(),
            "legend": [
                (stop, number)
                for stop in SHAPES
                if (number := sum(e.count for e in tree.rollouts if e.stop is stop))
            ],
            "link": self.link,
            "begin": self._begin(),
            "size": _TABLE,
            "more": self.more,
            "arms": self.arms,
            "arm": self.arm,
            "why": self.why,
            "moves": self._moves(),
            "payload": show(_payload(tree), 6000),
            "parts": PARTS,
            "counts": {name: sum(name in each for each in parts) for name in PARTS},
        }

    def link(self, turn: Turn, episode: int | None = None) -> str:
        """The address of a turn, as a part of an episode, with the chosen arm."""
        own = self.tree.rollout_of(turn.id).index
        more = {"branch": str(episode)} if episode is not None and episode != own else {}
        if self.arm is not None and self.arm is not self.arms[-1]:
            more["arm"] = self.arm.name
        return tree_link(self.stage, self.row["task"], reference(turn), **more)

    def more(self, start: int) -> str:
        """The address of this page with the table of episodes from `start` on."""
        here = self.link(self.chosen) if self.chosen else tree_link(self.stage, self.row["task"])
        return f"{here}&from={start}#all"

    def _begin(self) -> int:
        """The first row of the table of episodes: as asked, else so that the shown one is in the
        middle."""
        if "from" in self.query:
            return whole_number(self.query["from"])
        here = next((each.nth for each in self.order if each.episode is self.shown), 0)
        return max(0, min(here - _TABLE // 2, len(self.order) - _TABLE))

    def _panel(self) -> Any:
        turn = self.chosen
        if turn is None:
            return None
        texts = urlencode({"task": self.row["task"], "turn": reference(turn)})
        return panel(
            self.tree,
            turn,
            self.prompts,
            self.run.chat(),
            self.samples.get(turn.id, []),
            f"/raw/{stage_part(self.stage)}?{texts}",
        )

    @cached_property
    def _line(self) -> list[Turn]:
        """The turns of the shown episode from the reset on; a reflection on t actions stands before
        action t."""
        if self.shown is None:
            return []
        notes = [t for t in self.tree.turns_of(self.shown) if t.kind is not Kind.act]
        turns = [*self.tree.trajectory(self.shown), *notes]
        return sorted(turns, key=lambda t: (t.step, t.kind is Kind.act))

    @cached_property
    def _here(self) -> int | None:
        """The chosen turn's place among them."""
        return next((i for i, turn in enumerate(self._line) if turn is self.chosen), None)

    def _trajectory(self) -> dict[str, Any]:
        """The turns of the shown episode; of a long one those around the chosen turn."""
        shown, line, tree = self.shown, self._line, self.tree
        if shown is None:
            return {}
        begin = max(0, min((self._here or 0) - _TRAJECTORY // 2, len(line) - _TRAJECTORY))
        end = begin + _TRAJECTORY
        reflection = tree[shown.experience] if shown.experience is not None else None
        first = next((turn for turn in line if turn.kind is Kind.act), None)
        root = tree.episode_of(first.id) if first else shown
        return {
            "rows": [self._step(turn, shown) for turn in line[begin:end]],
            "progress": any(turn.progress is not None for turn in line),
            "before": begin,
            "after": max(0, len(line) - end),
            "first": show(root.first_observation, 1500),
            "reflection": reflection,
            "note": show(reflection.note, 600) if reflection else None,
            "error": show(shown.error, 600) if shown.error else None,
        }

    def _step(self, turn: Turn, shown: Episode) -> dict[str, Any]:
        action = " ".join((turn.action or turn.action_text).split())[:400] or "(nothing)"
        return {
            "turn": turn,
            "own": self.tree.rollout_of(turn.id).index == shown.index,
            "here": turn is self.chosen,
            "marks": self.parts.get(turn.id, set()),
            "branches": shown.experience is not None and turn in shown.acts[:1],
            "answer": show(action, 160),
            "observation": show(" ".join(turn.observation.split())[:600], 200),
            "note": show(turn.note, 300),
        }

    def _moves(self) -> dict[str, str]:
        """Where the keys lead: the branch before and after in the drawing, the turn before and
        after on the trajectory, the reflection that the branch follows."""
        out: dict[str, str] = {}
        if self.shown is None:
            return out
        place = next(row.nth for row in self.order if row.episode is self.shown)
        for name, nth in (("prev-branch", place - 1), ("next-branch", place + 1)):
            if 0 <= nth < len(self.order) and self.order[nth].episode.turns:
                out[name] = self.link(self.order[nth].episode.turns[0])
        if self._here is not None:
            for name, nth in (("prev-turn", self._here - 1), ("next-turn", self._here + 1)):
                if 0 <= nth < len(self._line):
                    out[name] = self.link(self._line[nth], self.shown.index)
        if self.shown.experience is not None:
            out["to-reflection"] = self.link(self.tree[self.shown.experience])
        return out


def _payload(tree: Tree) -> str:
    payload = dict(tree.task.payload)
    return json.dumps(payload, indent=1, ensure_ascii=False)[:20_000] if payload else ""
