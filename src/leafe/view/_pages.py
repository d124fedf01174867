"""The pages: plain values for each template. Every page is complete without a script."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from leafe.core import Tree, visible
from leafe.pipeline import StageResult
from leafe.report import stop_name
from leafe.view._drawing import mark, symbols
from leafe.view._follow import Follower
from leafe.view._index import COUNTS, FILTERS, SORTS, Hit, Index
from leafe.view._links import tasks_link, tree_link, with_query
from leafe.view._panel import whole
from leafe.view._run import Run
from leafe.view._text import one_line, show, snippet, storable
from leafe.view._training import Training
from leafe.view._tree_page import NotFound, TreePage, chosen_turn, whole_number

PAGE = 50
"""Tasks on a page; of search hits half as many."""
_KINDS = ("explore", "collect", "distill", "validate", "choose", "evaluate", "tries")
_TREES = ("explore", "validate", "evaluate", "tries")
"""Kinds of stages that have trees."""
_KEPT = 16
"""How many trees stay in memory: those shown last."""
_TEXTS = {
    "act": "action",
    "reflect": "reflection",
    "aside": "aside",
    "task": "task",
    "start": "first observation",
}
"""By kind of a search hit, what the text is."""


class Pages:
    """The pages of one run. Each method returns HTML, and raises `NotFound` for a wrong address."""

    def __init__(self, run: Run, index: Index, follower: Follower) -> None:
        self.index, self.follower = index, follower
        self._run = run
        self._training = Training(run.path, follower.notify)
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
            "one_line": one_line,
            "percent": lambda part, whole: f"{100 * part / whole:.1f} %" if whole else "–",
            "bytes": _bytes,
        }
        self._templates.globals |= {
            "mark": mark,
            "symbols": symbols,
            "stop_name": stop_name,
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

    def close(self) -> None:
        self._run.close()
        self._training.close()

    def overview(self) -> str:
        run = self.run
        planned = {name: nth for nth, name in enumerate(run.stages)}
        known = {row["name"]: dict(row) for row in self.index.stages()}
        begun = sorted(
            known.keys() | run.begun(),
            key=lambda name: (_rank(name), planned.get(name, len(planned)), name),
        )
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
            if stage.kind in _TREES and name not in begun and run.state(name) != "finished"
        ]
        return self._page(
            "overview.html.j2",
            run.name,
            stages=[self._stage_line(run, name, known.get(name)) for name in begun],
            trained=trained,
            waiting=waiting,
            about=str(run.folder.config.get("about", "")),
        )

    def _stage_line(self, run: Run, name: str, counted: dict[str, Any] | None) -> dict[str, Any]:
        """A stage's line in the overview. While its journal is being read, the counts of its marker
        stand for those of the index; `exact` names those that are whole."""
        state, reading = run.state(name), self.reading(name)
        out: dict[str, Any] = dict.fromkeys(COUNTS, 0) | {"problem": ""} | (counted or {})
        exact = set() if reading else set(COUNTS)
        if reading and counted and counted["tasks"]:
            exact.add("tasks")
        if reading and state == "finished":
            figures = run.figures(name)
            out |= figures
            exact |= figures.keys()
            if "tasks" in exact:
                out["begun"] = out["tasks"]
                exact.add("begun")
        read, total = self.follower.progress.get(name, (0, 0))
        return out | {
            "name": name,
            "state": state,
            "row": run.stages[name].row if name in run.stages else name.partition("/")[2],
            "reading": reading,
            "exact": exact,
            "share": read / total if total else 0.0,
        }

    def states(self) -> dict[str, dict[str, Any]]:
        """Of every stage that has begun: its state, and how far its journals are read (bytes)."""
        run, progress = self.run, self.follower.progress
        return {
            name: {"state": run.state(name), "reading": self.reading(name)}
            | dict(zip(("read", "of"), progress.get(name, (0, 0)), strict=True))
            for name in sorted(run.begun())
        }

    def reading(self, stage: str) -> bool:
        """Whether journals of the stage that were there when the viewer began are not all in the
        index."""
        return stage not in self.follower.caught_up

    def tasks(self, stage_name: str, query: Mapping[str, str]) -> str:
        stage = self._stage(stage_name)
        chosen, sort = query.get("show", "all"), query.get("sort", "")
        named = query.get("named", "").strip()[:200]
        if chosen not in FILTERS:
            raise NotFound(
                f"There is no filter {one_line(chosen, 60)!r}: there are {', '.join(FILTERS)}."
            )
        if sort and sort not in SORTS:
            raise NotFound(
                f"Tasks cannot be sorted by {one_line(sort, 60)!r}: there are {', '.join(SORTS)}."
            )
        begin = whole_number(query.get("from", "0"))
        found = self.index.tasks(stage["id"], chosen, sort, named, begin, PAGE)
        here = {"show": chosen, "sort": sort, "named": named}
        return self._page(
            "tasks.html.j2",
            stage_name,
            stage=stage_name,
            filters=FILTERS,
            counts=self.index.counts(stage["id"], named),
            chosen=chosen,
            sort=sort,
            named=named,
            tasks=found,
            link=lambda **changes: with_query(tasks_link(stage_name), here | changes),
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
        page = TreePage(self.run, self._training, stage_name, row, tree, query)
        before, after = self.index.beside(row)
        return self._page(
            "tree.html.j2",
            one_line(row["task"], 80),
            before=before,
            after=after,
            problem=problem,
            trouble=self._trouble(stage_name, stage["problem"]),
            reading=self.reading(stage_name),
            **page.values(),
        )

    def search(self, query: Mapping[str, str]) -> str:
        asked, where = query.get("q", "").strip()[:500], query.get("stage", "")
        begin = whole_number(query.get("from", "0"))
        stage = self._stage(where)["id"] if where else None
        found, number = self.index.search(asked, stage, begin, PAGE // 2)
        names = [row["name"] for row in self.index.stages()]
        return self._page(
            "search.html.j2",
            "search",
            asked=asked,
            where=where,
            hits=[_hit(hit, asked) for hit in found],
            number=number,
            begin=begin,
            size=PAGE // 2,
            names=sorted(names, key=lambda name: (_rank(name), name)),
            more=lambda start: with_query("/search", {"q": asked, "stage": where, "from": start}),
        )

    def raw(self, stage_name: str, query: Mapping[str, str]) -> str:
        """A whole text of a turn, as text."""
        _, tree, _ = self._tree(stage_name, query.get("task", ""))
        turn, what = chosen_turn(tree, query.get("turn")), query.get("what", "")
        if turn is None:
            raise NotFound("The task has no turn yet.")
        found = whole(tree, turn, what, self.run.prompts(stage_name))
        if found is None:
            raise NotFound(f"A turn has no text {one_line(what, 60)!r}.")
        return found

    def error(self, title: str, words: str) -> str:
        return self._page("error.html.j2", title, words=words)

    def _page(self, template: str, title: str, **values: Any) -> str:
        follower = self.follower
        page = self._templates.get_template(template).render(
            kind=template.partition(".")[0],
            title=title,
            run=self._run.name,
            revision=follower.revision,
            read=follower.bytes_read,
            of=follower.bytes_total,
            problem_all=follower.problem,
            recipe_problem=self._run.recipe.why,
            **values,
        )
        return visible(page)  # names of arms, stages and tasks too

    def _stage(self, name: str) -> Any:
        stage = self.index.stage(name)
        if stage is None:
            there = ", ".join(row["name"] for row in self.index.stages()) or "none yet"
            raise NotFound(
                f"The run has no stage {one_line(name, 100)!r} with trees{self._yet()}: there are "
                f"{there}."
            )
        return stage

    def _yet(self) -> str:
        return "" if self.follower.ready.is_set() else " yet (the journals are still being read)"

    def _trouble(self, stage: str, damage: str) -> list[str]:
        return [words for words in (self.follower.stage_problems.get(stage, ""), damage) if words]

    def _tree(self, stage_name: str, task: str) -> tuple[Any, Tree, str]:
        """The task's row, its tree, and a sentence where some of the tree cannot be shown."""
        stage = self._stage(stage_name)
        row = self.index.task(stage["id"], storable(task))
        if row is None:
            raise NotFound(
                f"The stage {stage_name} has no task {one_line(task, 100)!r}{self._yet()}."
            )
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


def _hit(hit: Hit, asked: str) -> dict[str, Any]:
    """A search hit with the neighbourhood of what was found in it."""
    answer, observation = snippet(hit.answer, asked), snippet(hit.observation, asked)
    observed = not answer[1] and bool(observation[1])
    turn = hit.turn.removeprefix(hit.task + "/") if hit.turn else None
    return {
        "hit": hit,
        "pieces": [show(piece, 900).html for piece in (observation if observed else answer)],
        "where": "the environment's answer" if observed else _TEXTS.get(hit.kind, hit.kind),
        "link": tree_link(hit.stage, hit.task, turn),
    }


def _rank(stage: str) -> int:
    kind = stage.partition("/")[0]
    return _KINDS.index(kind) if kind in _KINDS else len(_KINDS)


def _number(value: float | int) -> str:
    return f"{value:,}".replace(",", "\u2009") if isinstance(value, int) else f"{value:,.2f}"


def _bytes(value: int) -> str:
    return f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"
