"""The pages: what each shows, gathered into plain values for its template. Every page is whole
without a script."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from leafe.core import Kind, Stop, Tree, Turn, visible
from leafe.pipeline import StageResult
from leafe.view._drawing import MOST_ROWS, SHAPES, Drawing, mark, rows, symbols, words_of
from leafe.view._follow import Follower
from leafe.view._index import FILTERS, SORTS, Index
from leafe.view._panel import Panel, panel, whole
from leafe.view._run import Arm, Run
from leafe.view._text import around, part, plain, show, storable
from leafe.view._training import PARTS, Learnt, Training

PAGE = 50
"""Tasks, and search hits, on a page."""
_TRAJECTORY = 120
"""Turns of a trajectory, and in `_TABLE` episodes of a tree, that are shown at a time."""
_TABLE = 100
_KINDS = ("explore", "collect", "distill", "validate", "choose", "evaluate", "tries")
_KEPT = 16
_COUNTS = (
    "tasks",
    "episodes",
    "samples",
    "turns",
    "saved",
    "branches",
    "solved",
    "rescued",
    "successes",
    "begun",
    "diverged",
    "unusable",
    "errors",
    "tokens",
)
"""What the index counts of a stage."""


class NotThere(Exception):
    """The address names something that the run does not have; the message says what."""


class Pages:
    """The pages of one run. Each method gives HTML; `NotThere` where the address is wrong."""

    def __init__(self, run: Run, index: Index, follower: Follower) -> None:
        self.index, self.follower = index, follower
        self._run = run
        self._training = Training(run.path, follower.news)
        self._mutex = threading.Lock()
        self._trees: OrderedDict[tuple[int, int, int], tuple[Tree, str]] = OrderedDict()
        self._templates = Environment(
            loader=PackageLoader("leafe.view"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters |= {
            "number": _number,
            "plain": plain,
            "percent": _percent,
            "bytes": _bytes,
        }
        self._templates.globals |= {
            "mark": mark,
            "symbols": symbols,
            "words_of": words_of,
            "tasks_link": tasks_link,
            "tree_link": tree_link,
        }

    @property
    def run(self) -> Run:
        with self._mutex:
            fresh = self._run.fresh()
            if fresh is not self._run:
                self._run.close()
                self._run = fresh
            return fresh

    def warm(self) -> None:
        """Begin with what takes seconds, before anybody asks."""
        for name in self._templates.list_templates():
            self._templates.get_template(name)
        self._run.warm()

    def overview(self) -> str:
        run = self.run
        planned = {name: nth for nth, name in enumerate(run.stages)}
        known = {row["name"]: dict(row) for row in self.index.stages()}
        there = sorted(
            known.keys() | run.begun(),
            key=lambda name: (_rank(name), planned.get(name, len(planned)), name),
        )
        seen = [self._seen(run, name, known.get(name)) for name in there]
        trained = [
            {
                "name": name,
                "row": stage.row,
                "state": run.state(name),
                "counts": done.get("counts", {}),
                "remark": StageResult.parse(done).reason,
            }
            for name, stage in run.stages.items()
            if stage.kind == "distill"
            for done in [run.marker(name)]
        ]
        waiting = [
            name
            for name, stage in run.stages.items()
            if stage.kind in _TREES and name not in there and run.state(name) != "finished"
        ]
        return self._page(
            "overview.html.j2",
            run.name,
            stages=seen,
            trained=trained,
            waiting=waiting,
            about=str(run.folder.config.get("about", "")),
        )

    def _seen(self, run: Run, name: str, counted: dict[str, Any] | None) -> dict[str, Any]:
        """A stage's line in the overview. While its journal is being read, what its marker says
        stands for the counts; `exact` names those that are whole."""
        state, reading = run.state(name), self.reading(name)
        out: dict[str, Any] = (
            dict.fromkeys(_COUNTS, 0) | {"name": name, "problem": ""} | (counted or {})
        )
        exact = set() if reading else set(_COUNTS)
        if reading and counted and counted["tasks"]:
            exact.add("tasks")
        if reading and state == "finished":
            told = run.figures(name)
            out |= told
            exact |= told.keys()
            if "tasks" in exact:
                out["begun"] = out["tasks"]
                exact.add("begun")
        read, of = self.follower.at.get(name, (0, 0))
        row = run.stages[name].row if name in run.stages else name.partition("/")[2]
        return out | {
            "state": state,
            "row": row,
            "reading": reading,
            "exact": exact,
            "share": read / of if of else 0.0,
        }

    def states(self) -> dict[str, dict[str, Any]]:
        """Of every stage that was begun: its state, and how far its journals are read (bytes)."""
        run = self.run
        out = {}
        for name in sorted(run.begun()):
            read, of = self.follower.at.get(name, (0, 0))
            out[name] = {
                "state": run.state(name),
                "reading": self.reading(name),
                "read": read,
                "of": of,
            }
        return out

    def reading(self, stage: str) -> bool:
        """Whether journals of the stage that were there when the viewer began are not all in the
        index."""
        return stage not in self.follower.caught_up

    def tasks(self, stage_name: str, query: Mapping[str, str]) -> str:
        stage = self._stage(stage_name)
        chosen = query.get("show", "all")
        sort = query.get("sort", "")
        named = query.get("named", "").strip()[:200]
        if chosen not in FILTERS:
            raise NotThere(
                f"There is no filter {plain(chosen, 60)!r}: there are {', '.join(FILTERS)}."
            )
        if sort and sort not in SORTS:
            raise NotThere(
                f"Tasks cannot be sorted by {plain(sort, 60)!r}: there are {', '.join(SORTS)}."
            )
        begin = _whole(query.get("from", "0"))
        counts = self.index.counts(stage["id"], named)
        found = self.index.tasks(stage["id"], chosen, sort, named, begin, PAGE)
        kept = {
            key: value
            for key, value in {"show": chosen, "sort": sort, "named": named}.items()
            if value and value != "all"
        }

        def link(**changes: str | int) -> str:
            values = {
                key: value for key, value in (kept | changes).items() if value not in ("", "all", 0)
            }
            return tasks_link(stage_name) + (
                "?" + urlencode(values, errors="replace") if values else ""
            )

        return self._page(
            "tasks.html.j2",
            stage_name,
            stage=stage_name,
            filters=FILTERS,
            counts=counts,
            chosen=chosen,
            sort=sort,
            named=named,
            tasks=found,
            link=link,
            begin=begin,
            size=PAGE,
            sampled=any(row["samples"] > row["episodes"] for row in found),
            trouble=self._trouble(stage_name, stage["problem"]),
            state=self.run.state(stage_name),
            reading=self.reading(stage_name),
        )

    def tree(self, stage_name: str, query: Mapping[str, str]) -> str:
        stage = self._stage(stage_name)
        row, tree, problem = self._tree(stage_name, query.get("task", ""))
        run = self.run
        order = rows(tree)
        chosen = self._chosen(tree, query.get("turn"))
        shown = tree.rollout_of(chosen.id) if chosen else order[0].episode if order else None
        branch = query.get("branch", "")
        if branch.isdecimal() and int(branch) < len(tree.episodes):
            candidate = tree.episodes[int(branch)]
            candidate = tree.rollout_of(candidate.turns[0].id) if candidate.turns else candidate
            # a turn that branches share is looked at as a part of the one that was asked for
            if chosen is None or chosen.id in {
                t.id for t in (*tree.trajectory(candidate), *tree.turns_of(candidate))
            }:
                shown = candidate
        prompts = run.prompts(stage_name)
        arms = run.arms(stage_name)
        arm = next(
            (each for each in arms if each.name == query.get("arm")), arms[-1] if arms else None
        )
        taught, why = self._learnt(tree, stage_name, arm)

        def link(turn: Turn, episode: int | None = None) -> str:
            own = tree.rollout_of(turn.id).index
            more = {"branch": str(episode)} if episode is not None and episode != own else {}
            more |= {"arm": arm.name} if arm and arms and arm is not arms[-1] else {}
            return tree_link(stage_name, row["task"], reference(turn), **more)

        def more(start: int) -> str:
            return (
                f"{link(chosen) if chosen else tree_link(stage_name, row['task'])}&from={start}#all"
            )

        marks: dict[str, set[str]] = {
            turn: {each.sample.part for each in samples} for turn, samples in taught.items()
        }
        drawing = Drawing(
            tree, order, chosen, lambda turn: "?" + link(turn).partition("?")[2], marks, shown
        )
        seen: Panel | None = None
        if chosen is not None:
            raw = {"task": row["task"], "turn": reference(chosen)}
            seen = panel(
                tree,
                chosen,
                prompts,
                run.chat(),
                taught.get(chosen.id, []),
                lambda turn: link(turn),
                f"/raw/{_path(stage_name)}?{urlencode(raw)}",
            )
        before, after = self.index.beside(row)
        here = next((each.nth for each in order if shown is not None and each.episode is shown), 0)
        begin = (
            _whole(query["from"])
            if "from" in query
            else max(0, min(here - _TABLE // 2, len(order) - _TABLE))
        )
        steps = self._trajectory(tree, shown, chosen, marks)
        return self._page(
            "tree.html.j2",
            plain(row["task"], 80),
            stage=stage_name,
            task=row,
            instruction=show(tree.task.instruction, 3000),
            tree=tree,
            order=order,
            chosen=chosen,
            shown=shown,
            drawing=drawing.svg() if order else "",
            drawn=len(drawing.order),
            most=MOST_ROWS,
            steps=steps,
            panel=seen,
            legend=_legend(tree),
            link=link,
            begin=begin,
            size=_TABLE,
            more=more,
            before=before,
            after=after,
            problem=problem,
            arms=arms,
            arm=arm,
            why=why,
            moves=_moves(tree, order, chosen, shown, link),
            trouble=self._trouble(stage_name, stage["problem"]),
            payload=show(_payload(tree), 6000),
            reading=self.reading(stage_name),
            parts=PARTS,
            counts={name: sum(name in m for m in marks.values()) for name in PARTS},
        )

    def search(self, query: Mapping[str, str]) -> str:
        asked = query.get("q", "").strip()[:500]
        where = query.get("stage", "")
        begin = _whole(query.get("from", "0"))
        stage = self._stage(where) if where else None
        found, number = self.index.search(asked, stage["id"] if stage else None, begin, PAGE // 2)
        hits = []
        for hit in found:
            in_seen = not around(hit.said, asked)[1] and bool(around(hit.seen, asked)[1])
            pieces = around(hit.seen if in_seen else hit.said, asked)
            hits.append(
                {
                    "hit": hit,
                    "pieces": [show(piece, 900).html for piece in pieces],
                    "where": "the environment's answer"
                    if in_seen
                    else _WHERE.get(hit.kind, hit.kind),
                    "link": tree_link(
                        hit.stage,
                        hit.task,
                        hit.turn.removeprefix(hit.task + "/") if hit.turn else None,
                    ),
                }
            )
        names = sorted(
            (row["name"] for row in self.index.stages()), key=lambda name: (_rank(name), name)
        )
        return self._page(
            "search.html.j2",
            "search",
            asked=asked,
            where=where,
            hits=hits,
            number=number,
            begin=begin,
            size=PAGE // 2,
            names=names,
            more=lambda start: (
                "/search?"
                + urlencode({"q": asked, "stage": where, "from": start}, errors="replace")
            ),
        )

    def raw(self, stage_name: str, query: Mapping[str, str]) -> str:
        """A whole text of a turn, as text."""
        _, tree, _ = self._tree(stage_name, query.get("task", ""))
        turn = self._chosen(tree, query.get("turn"))
        what = query.get("what", "")
        if turn is None:
            raise NotThere("The task has no turn yet.")
        found = whole(tree, turn, what, self.run.prompts(stage_name))
        if found is None:
            raise NotThere(f"A turn has no text {plain(what, 60)!r}.")
        return found

    def error(self, title: str, words: str) -> str:
        return self._page("error.html.j2", title, words=words)

    def close(self) -> None:
        self._run.close()
        self._training.close()

    def _page(self, template: str, title: str, **values: Any) -> str:
        follower = self.follower
        page = self._templates.get_template(template).render(
            kind=template.partition(".")[0],
            title=title,
            run=self._run.name,
            revision=follower.revision,
            read=follower.read,
            of=follower.of,
            problem_all=follower.problem,
            recipe_problem=self._run.recipe.why,
            **values,
        )
        return visible(page)  # names of arms, stages and tasks too

    def _stage(self, name: str) -> Any:
        stage = self.index.stage(name)
        if stage is None:
            there = ", ".join(row["name"] for row in self.index.stages()) or "none yet"
            raise NotThere(
                f"The run has no stage {plain(name, 100)!r} with trees{self._yet()}: there "
                f"are {there}."
            )
        return stage

    def _yet(self) -> str:
        return "" if self.follower.ready.is_set() else " yet (the journals are still being read)"

    def _trouble(self, stage: str, damage: str) -> list[str]:
        return [words for words in (self.follower.trouble.get(stage, ""), damage) if words]

    def _tree(self, stage_name: str, task: str) -> tuple[Any, Tree, str]:
        stage = self._stage(stage_name)
        row = self.index.task(stage["id"], storable(task))
        if row is None:
            raise NotThere(f"The stage {stage_name} has no task {plain(task, 100)!r}{self._yet()}.")
        key = (row["id"], self.index.records(row["id"]), row["offset"])
        with self._mutex:
            found = self._trees.get(key)
        if found is None:
            found = self.index.tree(stage_name, row)
            with self._mutex:
                self._trees[key] = found
                while len(self._trees) > _KEPT:
                    self._trees.popitem(last=False)
        return row, *found

    def _chosen(self, tree: Tree, ref: str | None) -> Turn | None:
        """The turn that the address names; without one, that at which looking begins: the revised
        action of the branch that won, if one did."""
        if ref:
            for turn in (f"{tree.task.id}/{ref}", ref):
                if turn in tree:
                    return tree[turn]
            raise NotThere(f"The task {plain(tree.task.id, 100)!r} has no turn {plain(ref, 60)!r}.")
        best = (
            [e for e in tree.successes() if e.experience is not None]
            or tree.successes()
            or tree.rollouts
        )
        return next(
            (episode.turns[0] for episode in [*best, *tree.rollouts] if episode.turns), None
        )

    def _learnt(
        self, tree: Tree, stage: str, arm: Arm | None
    ) -> tuple[Mapping[str, list[Learnt]], str]:
        if arm is None:
            return {}, ""
        prompts = self.run.prompts(stage)
        if prompts.value is None:
            return {}, prompts.why
        found = self._training.of(stage, tree, prompts.value, arm)
        return found.value or {}, found.why

    def _trajectory(
        self, tree: Tree, shown: Any, chosen: Turn | None, marks: Mapping[str, set[str]]
    ) -> dict[str, Any]:
        """The chosen episode's turns from the reset on, reflections where they were made; of a long
        one those around the chosen turn."""
        if shown is None:
            return {}
        acts = tree.trajectory(shown)
        out: list[dict[str, Any]] = []
        for turn in [*acts, *(t for t in tree.turns_of(shown) if t.kind is not Kind.act)]:
            own = tree.rollout_of(turn.id).index == shown.index
            out.append(
                {
                    "turn": turn,
                    "own": own,
                    "here": chosen is not None and turn.id == chosen.id,
                    "marks": marks.get(turn.id, set()),
                    "branches": own
                    and shown.experience is not None
                    and bool(shown.acts)
                    and turn.id == shown.acts[0].id,
                    "said": show(
                        " ".join((turn.action or turn.action_text).split())[:400] or "(nothing)",
                        160,
                    ),
                    "seen": show(" ".join(turn.observation.split())[:600], 200),
                    "note": show(turn.note, 300),
                }
            )
        out.sort(
            key=lambda each: (each["turn"].step, each["turn"].kind is Kind.act)
        )  # a reflection on t actions stands before action t
        here = next((i for i, each in enumerate(out) if each["here"]), 0)
        begin = max(0, min(here - _TRAJECTORY // 2, len(out) - _TRAJECTORY))
        end = begin + _TRAJECTORY
        reflection = tree[shown.experience] if shown.experience is not None else None
        root = tree.episode_of(acts[0].id) if acts else shown
        return {
            "rows": out[begin:end],
            "progress": any(each["turn"].progress is not None for each in out),
            "before": begin,
            "after": max(0, len(out) - end),
            "first": show(root.first_observation, 1500),
            "reflection": reflection,
            "note": show(reflection.note, 600) if reflection else None,
            "error": show(shown.error, 600) if shown.error else None,
        }


_TREES = ("explore", "validate", "evaluate", "tries")
_WHERE = {
    "act": "action",
    "reflect": "reflection",
    "aside": "aside",
    "task": "task",
    "start": "first observation",
}


def tasks_link(stage: str) -> str:
    return f"/tasks/{_path(stage)}"


def tree_link(stage: str, task: str, ref: str | None = None, **more: str) -> str:
    """The address of a task's tree, at a turn: it stays the same for as long as the run is
    there."""
    values = (
        {"task": storable(task)}
        | ({"turn": storable(ref)} if ref else {})
        | {key: storable(value) for key, value in more.items()}
    )
    return f"/tree/{_path(stage)}?{urlencode(values)}"


def reference(turn: Turn) -> str:
    """A turn's id without its task's."""
    return storable(turn.id.removeprefix(turn.task_id + "/"))


def _path(stage: str) -> str:
    return "/".join(part(each) for each in stage.split("/"))


def _moves(tree: Tree, order: Any, chosen: Turn | None, shown: Any, link: Any) -> dict[str, str]:
    """Where the keys lead: the branch before and after in the drawing, the turn before and after on
    the trajectory, the reflection that asked for it."""
    out: dict[str, str] = {}
    if shown is None:
        return out
    place = next(row.nth for row in order if row.episode is shown)
    for name, nth in (("prev-branch", place - 1), ("next-branch", place + 1)):
        if 0 <= nth < len(order) and order[nth].episode.turns:
            out[name] = link(order[nth].episode.turns[0])
    if chosen is not None:
        said = [t for t in tree.turns_of(shown) if t.kind is not Kind.act]
        line = sorted([*tree.trajectory(shown), *said], key=lambda t: (t.step, t.kind is Kind.act))
        here = next((i for i, turn in enumerate(line) if turn.id == chosen.id), None)
        if here is not None and here > 0:
            out["prev-turn"] = link(line[here - 1], shown.index)
        if here is not None and here + 1 < len(line):
            out["next-turn"] = link(line[here + 1], shown.index)
    if shown.experience is not None:
        out["to-reflection"] = link(tree[shown.experience])
    return out


def _legend(tree: Tree) -> list[tuple[Stop, int]]:
    """The ends of this tree's episodes, by the number of samples."""
    stops = {stop: sum(e.count for e in tree.rollouts if e.stop is stop) for stop in SHAPES}
    return [(stop, number) for stop, number in stops.items() if number]


def _payload(tree: Tree) -> str:
    return (
        json.dumps(dict(tree.task.payload), indent=1, ensure_ascii=False)[:20_000]
        if tree.task.payload
        else ""
    )


def _rank(stage: str) -> int:
    kind = stage.partition("/")[0]
    return _KINDS.index(kind) if kind in _KINDS else len(_KINDS)


def _whole(text: str) -> int:
    return min(int(text), 10**9) if text.isascii() and text.isdecimal() and len(text) < 12 else 0


def _number(value: float | int) -> str:
    return f"{value:,}".replace(",", "\u2009") if isinstance(value, int) else f"{value:,.2f}"


def _percent(part_: int, of: int) -> str:
    return f"{100 * part_ / of:.1f} %" if of else "–"


def _bytes(value: int) -> str:
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"
