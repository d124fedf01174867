"""A weak programmer for MBPP: no language model and no solver. It compares what strategies make of
feedback where a real model would need a GPU.

It knows each problem's reference and up to `places` places in it where it errs (`mistakes`): only
those that fail in the sandbox. How often it errs at a place is drawn once for the problem: at a
*habit* nearly always, so that drawing again does not help, elsewhere seldom. It acts as programmers
do: it writes a program from nothing, or changes its last one that it sees; it reads the judge's
verdicts; it says what went wrong.

What it learns of its mistakes comes from the prompt alone, by the same reading for every strategy:

- A verdict *explains* a mistake if it shows a test or an exception, and would be another one
  without that mistake. "A hidden test failed" explains nothing.
- Under its own program in the history it sees each mistake that the verdict explains with
  probability `repair`, and writes that place right.
- Where the prompt begins with earlier attempts (refinement), it goes on from the last program
  there. It looks them through once, as when it is asked to reflect: it sees each mistake of that
  program that one of their verdicts explains with probability `repair`.
- Where a verdict of an earlier attempt stands without its program (a prompt set that shows no
  programs), it takes one of the simplest explanations, the fewest mistakes that give just this
  verdict, and sees each of these with probability `recall`.
- It does what a note asks for, right or wrong, with probability `heed`.
- It reads each of these when it comes; at later steps, where it still stands in the prompt, once
  more with `again` times its probability.
- Asked to reflect, it reads all verdicts of the history once more, and names each mistake of its
  last program that one of them explains with probability `insight`. The step is the first from
  which on a named one was there (`blame = "first"`) or the last one ("last"), with probability
  `lost` any. What it has repaired since that step it asks for as well, with the same probability:
  going back would lose it.
- Where it sees nothing it guesses: one place is drawn anew, or named as it would draw it.

So probabilities decide which way of reading pays, and an order of strategies is a finding about
them: `bench/code_strategies.py` sweeps them. By default it sees more when it is asked to look back
(0.5) than while it writes (0.2), and does most of what it is told (0.8, as the embedded base does).
With these the rollback tree and refinement that shows its programs are not told apart
(docs/results.md). The references run in the sandbox as all programs do; these runs belong to the
programmer and are charged to nobody.
"""

from __future__ import annotations

import ast
import asyncio
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from leafe.core import Completion, Request, Usage, UserError, derive_seed
from leafe.envs._data import data_path
from leafe.envs.code._functions import feedback, hidden_feedback
from leafe.envs.code.mbpp import read_problems
from leafe.envs.sandbox import Limits, Outcome, Sandbox, Verdict
from studies.weak_programmer.mistakes import Mistakes, MistakeSite, ProgramVersions, mistake_sites

_FIRST = "[Step 0]\n"
_HIDDEN = re.compile(r"^(All \d+ shown tests? passed\. )?A hidden test ", re.MULTILINE)
_BLOCK = re.compile(r"```python\n(.*?)\n```", re.DOTALL)
_CANDIDATES = 3
"""Places that are tried for each that is wanted: some make no difference to the tests, some never
end."""


class WeakProgrammer:
    """A `leafe.core.Policy` for the environment mbpp with its full history.

    Args:
        places: the most places of one problem where it errs, 1 to 6.
        habits: the share of places that are habits.
        stubborn: how often it errs at a habit.
        slip: how often it errs elsewhere.
        repair: see the module, as for `recall`, `insight`, `heed`, `lost`, `again` and `blame`.
        seed: draws places and habits.
        problems: the file of problems, as the environment's option.
        seconds: the time limit of a program, as the environment's option.

    Raises:
        UserError: an option is out of range, or the problems are not there.
    """

    name = "weak programmer"

    def __init__(
        self,
        places: int = 5,
        habits: float = 0.6,
        stubborn: float = 0.95,
        slip: float = 0.1,
        repair: float = 0.2,
        recall: float = 0.2,
        insight: float = 0.5,
        heed: float = 0.8,
        lost: float = 0.2,
        again: float = 0.0,
        blame: Literal["first", "last"] = "first",
        seed: int = 0,
        problems: str | None = None,
        seconds: int = 3,
    ) -> None:
        chances = {
            "habits": habits,
            "stubborn": stubborn,
            "slip": slip,
            "repair": repair,
            "recall": recall,
            "insight": insight,
            "heed": heed,
            "lost": lost,
            "again": again,
        }
        for option, value in chances.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise UserError(
                    f"The weak programmer cannot have {option} = {value!r}: give a "
                    "probability from 0 to 1."
                )
        for option, value in (("places", places), ("seconds", seconds)):
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 6:
                raise UserError(
                    f"The weak programmer cannot have {option} = {value!r}: give a whole "
                    "number from 1 to 6."
                )
        if blame not in ("first", "last"):
            raise UserError(
                f"The weak programmer cannot have blame = {blame!r}: give first or last."
            )
        self.habits, self.stubborn, self.slip, self.lost = habits, stubborn, slip, lost
        self.repair, self.recall, self.insight = repair, recall, insight
        self.heed, self.again, self.blame = heed, again, blame
        self.seed = seed
        self._problems_file = _load_problems(
            str(problems or data_path("mbpp/mbpp.jsonl.gz", "MBPP", "problems")),
            places,
            seconds,
            seed,
        )

    async def complete(self, request: Request) -> list[Completion]:
        """Sample n programs, or n reflections where the request has a schema.

        Raises:
            UserError: the task is none of the file's, or the prompt lacks its beginning.
        """
        problem = self._problems_file.problem(request.cache_key)
        if not problem.prepared:
            await asyncio.to_thread(problem.prepare)
        seen = _Reading.of(request, problem)
        answer = self._reflect if request.schema is not None else self._act
        texts = Counter(
            answer(problem, seen, random.Random(derive_seed(request.seed or 0, "weak", i)))
            for i in range(request.n)
        )
        read = sum(len(m.content.split()) for m in request.messages)
        return [
            Completion(text, count, usage=Usage(prompt=read, generated=len(text.split())))
            for text, count in texts.items()
        ]

    async def close(self) -> None:
        """Close the sandbox's boxes. Prepared problems stay for the next programmer of this
        process."""
        self._problems_file.sandbox.close()

    def error_rate(self, task_id: str, place: int) -> float:
        """How often the place is written wrong where nothing in the prompt is about it."""
        drawn = random.Random(derive_seed(self.seed, task_id, "habit", place)).random()
        return self.stubborn if drawn < self.habits else self.slip

    def _act(self, problem: _Problem, seen: _Reading, chance: random.Random) -> str:
        places, step = range(len(problem.versions.places)), len(seen.programs)
        last = seen.programs[-1] if step else seen.earlier[-1][0] if seen.earlier else None
        wrong = self._draw_errors(problem, places, chance) if last is None else set(last)

        def sees(probability: float, since: int) -> bool:
            return chance.random() < probability * (1.0 if since == step else self.again)

        for at, verdict in enumerate(seen.verdicts, start=1):
            if verdict:
                wrong -= {
                    place
                    for place in sorted(problem.explained(seen.programs[at - 1], seen.shown))
                    if sees(self.repair, at)
                }
        wrong -= {
            place
            for place in sorted(problem.suspects(seen.earlier, seen.shown))
            if sees(self.repair, 0)
        }
        for verdict in seen.unexplained:
            explanations = problem.explanations(verdict, seen.shown)
            wrong -= {
                place
                for place in (sorted(chance.choice(explanations)) if explanations else ())
                if sees(self.recall, 0)
            }
        for at, place, right in seen.advice:
            if sees(self.heed, at):
                (wrong.discard if right else wrong.add)(place)
        if last is not None and wrong == set(last) and places:
            guessed = chance.choice(places)
            wrong = wrong - {guessed} | self._draw_errors(problem, [guessed], chance)
        thought = "I write it step by step." if last is None else "I change what looks wrong."
        return f"{thought}\n```python\n{problem.versions.text(frozenset(wrong))}\n```"

    def _reflect(self, problem: _Problem, seen: _Reading, chance: random.Random) -> str:
        places, steps = problem.versions.places, len(seen.programs)
        if not steps or not places:
            return json.dumps({"step": 0, "experience": "Read the task again."})
        last = seen.programs[-1]
        suspects = problem.suspects(
            list(zip(seen.programs, seen.verdicts, strict=True)), seen.shown
        )
        advice = {place: True for place in sorted(suspects) if chance.random() < self.insight}
        if not advice:
            guessed = chance.randrange(len(places))
            advice = {guessed: not self._draw_errors(problem, [guessed], chance)}
        astray = [
            _wrong_since(seen.programs, place, wrong=right)
            for place, right in advice.items()
            if (place in last) == right
        ]
        step = min(astray, default=steps - 1) if self.blame == "first" else steps - 1
        if chance.random() < self.lost:
            step = chance.randrange(steps)
        advice |= {
            place: True
            for place in sorted(seen.programs[step] - last)
            if place not in advice and chance.random() < self.insight
        }
        said = [
            places[place].right if right else places[place].wrong for place, right in advice.items()
        ]
        return json.dumps({"step": step, "experience": " ".join(said)})

    def _draw_errors(
        self, problem: _Problem, places: Sequence[int], chance: random.Random
    ) -> set[int]:
        """The places that are written wrong, drawn by habit."""
        return {
            place for place in places if chance.random() < self.error_rate(problem.task_id, place)
        }


def _wrong_since(programs: Sequence[Mistakes], place: int, wrong: bool) -> int:
    """The first step from which on the place was always wrong (or right)."""
    step = len(programs)
    while step and (place in programs[step - 1]) == wrong:
        step -= 1
    return step


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the programmer reads in a prompt."""

    shown: int
    """Tests that the task shows."""
    earlier: tuple[tuple[Mistakes, str], ...]
    """Its programs in earlier attempts, each with its verdict; empty where that is left out."""
    unexplained: tuple[str, ...]
    """Verdicts of earlier attempts, without their programs."""
    programs: tuple[Mistakes, ...]
    """Its own programs so far."""
    verdicts: tuple[str, ...]
    """The verdict on each; empty where it is none that the programmer knows."""
    advice: tuple[tuple[int, int, bool], ...]
    """(step, place, right): a note before that step asks for the right way to write the place, or
    for the wrong one."""

    @staticmethod
    def of(request: Request, problem: _Problem) -> _Reading:
        starts = [
            i
            for i, m in enumerate(request.messages)
            if m.role == "user" and _FIRST in m.content and problem.text in m.content
        ]
        if not starts:
            raise UserError(
                'The weak programmer reads the whole history: set history = "full" and '
                'prompts = "mbpp".'
            )
        talk = request.messages[starts[-1] :]
        said = [m.content for m in talk if m.role == "user"]
        head = said[0].rpartition(_FIRST)[0]
        shown = next(
            (n for n, test in enumerate(problem.tests) if test not in head), len(problem.tests)
        )
        advice = []
        for step, text in enumerate(said):
            for number, place in enumerate(problem.versions.places):
                advice += [
                    (step, number, right)
                    for right, asked in ((True, place.right), (False, place.wrong))
                    if asked in text
                ]
        programs, verdicts = [], []
        for message, answer in zip(
            [m for m in talk if m.role == "assistant"], said[1:], strict=True
        ):
            block = _BLOCK.search(message.content)
            wrong = problem.versions.read(block[1]) if block else None
            if wrong is None:
                raise UserError(
                    "The weak programmer finds a program in its history that it did not "
                    "write: begin this run anew."
                )
            programs.append(wrong)
            verdict = problem.verdict_text(wrong, shown)
            verdicts.append(verdict if _has_verdict(answer, verdict) else "")
        before, *blocks = _BLOCK.split(head)  # text, program, text, program, text ...
        earlier = []
        for program, answer in zip(blocks[::2], blocks[1::2], strict=True):
            wrong = problem.versions.read(program)
            if wrong is not None:  # None: it was cut, or another wrote it
                verdict = problem.verdict_text(wrong, shown)
                earlier.append((wrong, verdict if _has_verdict(answer, verdict) else ""))
        texts = dict.fromkeys(
            problem.verdict_text(wrong, shown) for wrong in problem.versions.all()
        )
        unexplained = sorted(
            (before.index(text), text) for text in texts if _has_verdict(before, text)
        )
        return _Reading(
            shown,
            tuple(earlier),
            tuple(text for _, text in unexplained),
            tuple(programs),
            tuple(verdicts),
            tuple(advice),
        )


def _has_verdict(text: str, verdict: str) -> bool:
    """Whether the whole verdict is in the text: the environment goes on with how many submissions
    are left."""
    return f"{verdict}\nYou have " in text or f"{verdict}\nThat was the last" in text


class _Problem:
    """A problem's versions and their verdicts in the sandbox."""

    def __init__(self, row: dict[str, Any], places: int, sandbox: Sandbox, seed: int) -> None:
        self.task_id = f"mbpp-{row['task_id']}"
        self.text = row["text"].strip()
        self.tests = [test.strip() for test in row["test_list"]]
        self.setup = row["test_setup_code"].replace("\r\n", "\n")
        self.versions = ProgramVersions("pass")
        self._row, self._places, self._sandbox, self._seed = row, places, sandbox, seed
        self._verdicts: dict[Mistakes, Verdict] = {}
        self._verdict_texts: dict[int, dict[Mistakes, str]] = {}
        self._lock = threading.Lock()

    @property
    def prepared(self) -> bool:
        return bool(self._verdicts)

    def prepare(self) -> None:
        """Choose the places and run all versions, once. Blocks for tens of milliseconds."""
        with self._lock:
            if self._verdicts:
                return
            try:
                reference = ast.unparse(ast.parse(self._row["code"]))
            except (SyntaxError, ValueError) as error:
                raise UserError(
                    f"The reference of {self.task_id} is no Python ({error}): the weak "
                    "programmer needs one that runs."
                ) from error
            chosen: list[MistakeSite] = []
            for place in mistake_sites(
                reference, "\n".join(self.tests), derive_seed(self._seed, self.task_id, "places")
            )[: _CANDIDATES * self._places]:
                mistaken = ProgramVersions(reference, [place]).text(frozenset([0]))
                if len(chosen) < self._places and self._judged(mistaken).outcome not in (
                    Outcome.passed,
                    Outcome.time,
                ):
                    chosen.append(place)
            self.versions = ProgramVersions(reference, chosen)
            self._verdicts = {
                wrong: self._judged(self.versions.text(wrong)) for wrong in self.versions.all()
            }

    def _judged(self, program: str) -> Verdict:
        return self._sandbox.run(program, self.tests, self.setup)

    def verdict_text(self, wrong: Mistakes, shown: int) -> str:
        """What the environment says to this version, without how many submissions are left."""
        if shown not in self._verdict_texts:
            self._verdict_texts[shown] = {
                version: self._feedback(version, verdict, shown)
                for version, verdict in self._verdicts.items()
            }
        return self._verdict_texts[shown][wrong]

    def _feedback(self, wrong: Mistakes, verdict: Verdict, shown: int) -> str:
        total, limits = len(self.tests), self._sandbox.limits
        if verdict.test is not None and verdict.test >= shown:
            return hidden_feedback(verdict.outcome, shown, limits)
        if verdict.test is not None and shown < total:  # the environment runs these alone
            verdict = self._sandbox.run(self.versions.text(wrong), self.tests[:shown], self.setup)
        return feedback(verdict, self.tests[:shown], total, limits)

    def explained(self, wrong: Mistakes, shown: int) -> Mistakes:
        """The mistakes that the verdict explains: without one of them it would be another verdict.
        All of them where each alone explains it."""
        said = self.verdict_text(wrong, shown)
        if _HIDDEN.search(said):
            return frozenset()
        return (
            frozenset(place for place in wrong if self.verdict_text(wrong - {place}, shown) != said)
            or wrong
        )

    def suspects(self, written: Sequence[tuple[Mistakes, str]], shown: int) -> set[int]:
        """The mistakes of the last of these programs that the verdict on one of them explains."""
        known = [self.explained(wrong, shown) for wrong, verdict in written if verdict]
        return set(written[-1][0]).intersection(set[int]().union(*known)) if written else set()

    def explanations(self, verdict: str, shown: int) -> list[Mistakes]:
        """The smallest versions that get this verdict; none where it speaks of nothing."""
        if _HIDDEN.search(verdict):
            return []
        found = [
            wrong
            for wrong in self.versions.all()
            if wrong and self.verdict_text(wrong, shown) == verdict
        ]
        return [wrong for wrong in found if len(wrong) == len(found[0])]


class _ProblemFile:
    """All problems of a file, as far as they were asked for."""

    def __init__(self, path: str, places: int, seconds: int, seed: int) -> None:
        self.path = path
        self.sandbox = Sandbox(Limits(seconds=seconds))
        self._problems = {f"mbpp-{row['task_id']}": row for row in read_problems(Path(path))}
        self._made: dict[str, _Problem] = {}
        self._how = (places, self.sandbox, seed)

    def problem(self, task_id: str) -> _Problem:
        if task_id not in self._problems:
            raise UserError(
                f"The weak programmer knows no task {task_id!r}: it plays the environment "
                f"mbpp with the problems of {self.path}: give both one file."
            )
        if task_id not in self._made:
            row = self._problems[task_id]
            if not isinstance(row.get("code"), str):
                raise UserError(
                    f"{self.path}: {task_id} has no column 'code': the weak programmer "
                    "needs the references."
                )
            self._made[task_id] = _Problem(row, *self._how)
        return self._made[task_id]


@lru_cache(maxsize=8)
def _load_problems(path: str, places: int, seconds: int, seed: int) -> _ProblemFile:
    return _ProblemFile(path, places, seconds, seed)
