"""The weak programmer: its mistakes are real, it knows what the prompt says and nothing else, and
it reads alike whoever asks."""

from __future__ import annotations

import ast
import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import Kind, Message, Request, Task, Turn, UserError
from leafe.envs.code.mbpp import Mbpp
from leafe.prompts import History, Prompts, attempt_text, load_prompt_set
from studies.weak_programmer import WeakProgrammer
from studies.weak_programmer.mistakes import ProgramVersions, mistake_sites
from tests.envs.data import needs_sandbox

CLIPPED = """import math
def clipped(values, low):
    if not values:
        return 0
    total = 0
    for value in values:
        if value > low and value != 7:
            total += math.floor(value) + 1
    return total"""
TESTS = [
    "assert clipped([3, 9], 2) == 14",
    "assert clipped([], 5) == 0",
    "assert clipped([4, 7, 2], 2) == 5",
]
ROW = {
    "task_id": 601,
    "text": "Add up.",
    "code": CLIPPED.replace("\n", "\r\n"),
    "test_list": TESTS,
    "test_setup_code": "",
}
PLACES = mistake_sites(ast.unparse(ast.parse(CLIPPED)), "\n".join(TESTS), 0)


def test_there_is_a_mistake_of_every_kind_and_each_changes_the_program() -> None:
    written = [ProgramVersions(CLIPPED, [place]).text(frozenset([0])) for place in PLACES]
    right = ast.unparse(ast.parse(CLIPPED))
    assert len({*written, right}) == len(PLACES) + 1
    kinds = (
        "solution(",
        "return print(total)",
        "value >= low",
        "value > low or",
        "floor(value) - 1",
        "if False:",
        "import math as _math",
        "+ 2",
    )
    for kind in kinds:
        assert any(kind in program for program in written), kind
    assert len({advice for place in PLACES for advice in (place.right, place.wrong)}) == 2 * len(
        PLACES
    )


@given(st.lists(st.sampled_from(PLACES), unique=True, max_size=5), st.data())
def test_a_version_is_read_as_the_fewest_mistakes_that_give_it(
    places: list[object], data: st.DataObject
) -> None:
    versions = ProgramVersions(CLIPPED, places)  # type: ignore[arg-type]
    wrong = (
        frozenset(data.draw(st.sets(st.integers(0, len(places) - 1))))
        if places
        else frozenset[int]()
    )
    text = versions.text(wrong)
    alike = [other for other in versions.all() if versions.text(other) == text]
    assert versions.read(text) in alike
    assert len(versions.read(text) or ()) == min(map(len, alike))
    assert versions.read(text + "\n# mine") is None
    assert versions.read(ast.unparse(ast.parse(CLIPPED))) == frozenset()


@pytest.fixture
def problems(tmp_path: Path) -> str:
    file = tmp_path / "mbpp.jsonl"
    file.write_text(json.dumps(ROW) + "\n")
    return str(file)


class Desk:
    """One programmer and the environment; what was submitted so far is the history."""

    def __init__(self, problems: str, shown: int = 3, **options: Any) -> None:
        self.policy = WeakProgrammer(problems=problems, **options)
        self.env = Mbpp(problems=problems, shown_tests=shown)
        self.task: Task = self.env.tasks("train")[0]
        self.prompts = Prompts(load_prompt_set("mbpp"), self.env.actions_help)
        self.said = [self.env.reset(self.task, 0)]
        self.written: list[str] = []

    def messages(self, note: str = "", preamble: tuple[str, ...] = ()) -> tuple[Message, ...]:
        talk = list(self.prompts.act(History(self.task, self.said[0], preamble=preamble)))
        for step, (text, verdict) in enumerate(
            zip(self.written, self.said[1:], strict=True), start=1
        ):
            talk += [Message("assistant", text), Message("user", f"[Step {step}]\n{verdict}")]
        talk[-1] = Message(
            "user",
            talk[-1].content
            + (f"\n\nAdvice from an earlier attempt at this very step: {note}" if note else ""),
        )
        return tuple(talk)

    def ask(
        self,
        seed: int = 0,
        note: str = "",
        preamble: tuple[str, ...] = (),
        n: int = 1,
        schema: object = None,
    ) -> list[str]:
        request = Request(
            self.messages(note, preamble), n=n, seed=seed, schema=schema, cache_key=self.task.id
        )  # type: ignore[arg-type]
        answers = asyncio.run(self.policy.complete(request))
        return [a.text for a in answers for _ in range(a.count)]

    def submit(self, text: str) -> str:
        self.said.append(self.env.step(self.prompts.parse_action(text)[1]).observation)
        self.written.append(text)
        return self.said[-1]

    def wrong(self, text: str) -> set[str]:
        """The advice that would have helped, of all that the programmer could give."""
        problem = self.policy._problems_file.problem(self.task.id)
        found = problem.versions.read(self.prompts.parse_action(text)[1])
        assert found is not None
        return {problem.versions.places[place].right for place in found}

    def reflect(self, seed: int = 0) -> tuple[int, str]:
        return self.prompts.parse_reflection(
            self.ask(seed, schema={"type": "object"})[0], len(self.written)
        )


BLIND: dict[str, Any] = {"repair": 0.0, "recall": 0.0, "insight": 0.0, "heed": 0.0, "lost": 0.0}
ALWAYS: dict[str, Any] = {"habits": 1.0, "stubborn": 1.0, "slip": 0.0}
NEVER: dict[str, Any] = {"habits": 0.0, "stubborn": 1.0, "slip": 0.0}


@needs_sandbox
def test_without_mistakes_it_is_right_and_with_all_of_them_wrong(problems: str) -> None:
    assert (
        Desk(problems, **NEVER)
        .submit(Desk(problems, **NEVER).ask()[0])
        .startswith("All 3 tests passed.")
    )
    desk = Desk(problems, **ALWAYS)
    assert len(desk.wrong(desk.ask()[0])) == 5
    assert (
        "passed" not in desk.submit(desk.ask()[0]).splitlines()[0]
        or "0 of 3" in desk.said[-1]
        or "This test" in desk.said[-1]
    )


@needs_sandbox
def test_every_place_alone_fails_in_the_env(problems: str) -> None:
    desk = Desk(problems, places=6, **ALWAYS)
    desk.ask()
    versions = desk.policy._problems_file.problem(desk.task.id).versions
    assert len(versions.places) == 6
    for place in range(6):
        desk.env.reset(desk.task, 0)
        assert not desk.env.step(versions.text(frozenset([place]))).success


@needs_sandbox
def test_who_sees_what_a_verdict_speaks_of_is_right_in_the_end_and_who_does_not_stays_wrong(
    problems: str,
) -> None:
    seeing, blind = (
        Desk(problems, **ALWAYS | BLIND | {"repair": 1.0}),
        Desk(problems, **ALWAYS | BLIND),
    )
    for _ in range(4):
        before = len(seeing.wrong(seeing.written[-1])) if seeing.written else 6
        last = seeing.submit(seeing.ask()[0])
        assert len(seeing.wrong(seeing.written[-1])) < before
        if last.startswith("All"):
            break
        assert not blind.submit(blind.ask()[0]).startswith("All")
        assert len(blind.wrong(blind.written[-1])) == 5
    assert last.startswith("All 3 tests passed.")


@needs_sandbox
def test_a_hidden_test_speaks_of_nothing(problems: str) -> None:
    desk = Desk(problems, shown=0, **ALWAYS | BLIND | {"repair": 1.0, "insight": 1.0})
    while "A hidden test" not in desk.submit(desk.ask(seed=len(desk.said))[0]):
        pass  # at most 3: then the programs load
    at = len(desk.written)
    before = desk.wrong(desk.written[-1])
    desk.policy.stubborn = 0.5  # guesses may be right
    changes = [len(before ^ desk.wrong(text)) for text in desk.ask(n=40)]
    assert max(changes) <= 1
    assert len({desk.reflect(seed)[1] for seed in range(20)}) > 1, "it guesses"
    assert len(desk.written) == at


@needs_sandbox
def test_advice_is_done_as_often_as_it_is_heeded_right_or_wrong(problems: str) -> None:
    for heed in (0.0, 0.5, 1.0):
        desk = Desk(problems, **ALWAYS | BLIND | {"heed": heed})
        advice = sorted(desk.wrong(desk.ask()[0]))[0]
        followed = sum(advice not in desk.wrong(text) for text in desk.ask(note=advice, n=200))
        assert abs(followed / 200 - heed) < 0.15, "five standard errors"
        sound = Desk(problems, **NEVER | BLIND | {"heed": heed})
        harm = next(
            p.wrong
            for p in sound.policy._problems_file.problem(sound.task.id).versions.places
            if p.right == advice
        )
        harmed = sum(advice in sound.wrong(text) for text in sound.ask(note=harm, n=200))
        assert abs(harmed / 200 - heed) < 0.15


@needs_sandbox
def test_a_reflection_names_what_stands_there_and_the_first_step_at_which_it_stood(
    problems: str,
) -> None:
    desk = Desk(problems, **ALWAYS | BLIND | {"insight": 1.0})
    for _ in range(2):
        desk.submit(desk.ask()[0])
    step, note = desk.reflect()
    assert step == 0
    assert any(advice in note for advice in desk.wrong(desk.written[-1]))
    assert Counter(Desk.reflect(_lost(desk), seed)[0] for seed in range(60)).keys() == {0, 1}
    assert set(note.replace("`. In", "`.\nIn").splitlines()) <= desk.wrong(desk.written[-1])


def _lost(desk: Desk) -> Desk:
    desk.policy.lost = 1.0
    return desk


@needs_sandbox
def test_a_verdict_without_its_program_is_understood_by_its_simplest_explanation(
    problems: str,
) -> None:
    desk = Desk(problems, **ALWAYS | BLIND | {"recall": 1.0})
    desk.ask()
    problem = desk.policy._problems_file.problem(desk.task.id)
    for place, _ in enumerate(problem.versions.places):
        desk.env.reset(desk.task, 0)
        verdict = desk.env.step(problem.versions.text(frozenset([place]))).observation
        same = {
            frozenset([p])
            for p in range(5)
            if problem.verdict_text(frozenset([p]), 3)
            == problem.verdict_text(frozenset([place]), 3)
        }
        avoided = {
            frozenset(range(5)) - (problem.versions.read(desk.prompts.parse_action(t)[1]) or set())
            for t in desk.ask(preamble=(verdict,), n=60)
        }
        assert avoided == same
    assert all(len(desk.wrong(t)) == 5 for t in desk.ask(preamble=("It is wrong.",), n=20))


def attempt_of(desk: Desk, count: int = 1) -> str:
    """What refinement shows of an attempt of so many submissions."""
    for _ in range(count):
        desk.submit(desk.ask()[0])
    pairs = zip(desk.written, desk.said[1:], strict=True)
    turns = [act_turn_of(desk, i, text, said) for i, (text, said) in enumerate(pairs)]
    return attempt_text(load_prompt_set("mbpp"), turns)


@needs_sandbox
def test_it_goes_on_from_the_last_program_of_an_earlier_attempt(problems: str) -> None:
    first = Desk(problems, **ALWAYS | BLIND)
    shown, wrong = attempt_of(first, 2), first.wrong(first.written[-1])
    able = Desk(problems, **NEVER | BLIND)
    assert {len(wrong - able.wrong(text)) for text in able.ask(preamble=(shown,), n=20)} == {1}, (
        "one guess, all else as it was"
    )
    assert able.wrong(able.ask()[0]) == set(), "without the attempt it would have been right"


@needs_sandbox
@pytest.mark.parametrize("repair", [0.0, 0.5, 1.0])
def test_an_earlier_attempt_is_looked_through_once_as_its_own_history_is(
    problems: str, repair: float
) -> None:
    first = Desk(problems, **ALWAYS | BLIND)
    shown, text = attempt_of(first, 3), first.written[-1]
    reader = Desk(problems, **ALWAYS | BLIND | {"repair": repair})
    reader.ask()
    problem = reader.policy._problems_file.problem(reader.task.id)
    version = problem.versions.read(first.prompts.parse_action(text)[1])
    assert version is not None
    spoken = {problem.versions.places[p].right for p in problem.explained(version, 3)}
    assert spoken
    for advice in spoken:  # the same verdict stands there three times: it is still one look
        seen = sum(
            advice not in reader.wrong(answer)
            for answer in reader.ask(preamble=(shown, shown), n=200)
        )
        assert abs(seen / 200 - repair) < 0.15, "five standard errors"


@needs_sandbox
def test_of_an_attempt_that_is_cut_it_reads_what_is_there(problems: str) -> None:
    first = Desk(problems, **ALWAYS | BLIND)
    shown = attempt_of(first)
    reader = Desk(problems, **ALWAYS | BLIND | {"repair": 1.0})
    for cut in (
        shown.replace("return", "re...", 1),
        shown.split("\n```\n")[0] + "\n```\n(left out)\n",
        shown[: len(shown) // 2],
    ):
        assert all(len(reader.wrong(text)) in (4, 5) for text in reader.ask(preamble=(cut,), n=5))


@needs_sandbox
@given(seed=st.integers(0, 2**40), n=st.integers(1, 5))
def test_answers_depend_on_the_request_alone(
    seed: int, n: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "weak.jsonl"
    file.write_text(json.dumps(ROW) + "\n")
    assert sorted(Desk(str(file)).ask(seed, n=n)) == sorted(Desk(str(file)).ask(seed, n=n))
    assert len(Desk(str(file)).ask(seed, n=n)) == n


@needs_sandbox
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repair": 1.5}, "repair = 1.5: give a probability"),
        ({"places": 9}, "places = 9: give a whole number"),
        ({"heed": True}, "heed = True"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(
    problems: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        WeakProgrammer(problems=problems, **options)


def act_turn_of(desk: Desk, step: int, text: str, said: str) -> Turn:
    return Turn(
        f"t/0.{step}",
        None,
        desk.task.id,
        step,
        Kind.act,
        text,
        desk.prompts.parse_action(text)[1],
        observation=said,
    )


@needs_sandbox
def test_what_it_does_not_know_is_one_sentence(problems: str, tmp_path: Path) -> None:
    desk = Desk(problems)
    other = Request(desk.messages(), cache_key="mbpp-602")
    with pytest.raises(UserError, match="knows no task 'mbpp-602'"):
        asyncio.run(desk.policy.complete(other))
    with pytest.raises(UserError, match='history = "full"'):
        asyncio.run(
            desk.policy.complete(Request((Message("user", "Write."),), cache_key=desk.task.id))
        )
    desk.submit(desk.ask()[0])
    window = Prompts(load_prompt_set("mbpp"), history="window:2").act(
        History(desk.task, desk.said[0], (act_turn_of(desk, 0, desk.written[0], desk.said[1]),))
    )
    with pytest.raises(UserError, match='history = "full"'):
        asyncio.run(desk.policy.complete(Request(window, cache_key=desk.task.id)))
    desk.submit("```python\nprint('somebody else')\n```")
    with pytest.raises(UserError, match="did not write"):
        desk.ask()
    for code, message in ((None, "no column 'code'"), ("def f(:", "is no Python")):
        file = tmp_path / f"{message[-4:]}.jsonl"
        file.write_text(json.dumps(ROW | {"code": code}) + "\n")
        with pytest.raises(UserError, match=message):
            Desk(str(file)).ask()
