"""Checks the judges of the code environments with references and their mutants, on real data.

python bench/code_envs.py [--mutants 4] [--problems 157] [--only codecontests mbpp humaneval]
    [--list]

A mutant is a reference with one operator or constant changed. An accepted mutant may be equivalent
on all deciding tests: each is run again by a bare interpreter, without leafe's sandbox and judge,
and its output compared with the reference's. `wrongly accepted` are those whose output differs by
more than white space; `wrongly rejected` (checked on up to 100 that the judge found wrong) are
those whose output does not.
"""

from __future__ import annotations

import argparse
import ast
import gzip
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[1]))

from rich import box
from rich.console import Console
from rich.table import Table

from leafe.core import Task
from leafe.envs.code._submissions import Judged, Submissions
from leafe.envs.code.codecontests import CodeContests
from leafe.envs.code.humaneval import HumanEval
from leafe.envs.code.humaneval import read_problems as humaneval_problems
from leafe.envs.code.mbpp import Mbpp
from leafe.envs.code.mbpp import read_problems as mbpp_problems
from leafe.envs.sandbox import Outcome
from tests.envs.mutants import mutants

DATA = Path(os.environ.get("LEAFE_DATA") or Path(__file__).parents[2] / "shared" / "data")


def env_of(name: str) -> tuple[Submissions, dict[str, str]]:
    """The environment and its references by task id."""
    if name == "codecontests":
        file = DATA / "codecontests" / "sample.jsonl.gz"
        rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
        return CodeContests(str(file)), {
            f"codecontests-{row['name']}": row["solutions"]["solution"][0] for row in rows
        }
    if name == "mbpp":
        found = mbpp_problems(DATA / "mbpp" / "mbpp.jsonl.gz")
        return Mbpp(str(DATA / "mbpp" / "mbpp.jsonl.gz")), {
            f"mbpp-{row['task_id']}": row["code"] for row in found
        }
    env = HumanEval()
    problems = humaneval_problems(env.problems)
    return env, {
        row["task_id"].replace("/", "-"): row["prompt"] + row["canonical_solution"]
        for _, row in problems
    }


def bare(program: str, stdin: str) -> tuple[int, list[str]]:
    """(exit status, words printed) by a bare interpreter."""
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", program],
            input=stdin.encode(),
            capture_output=True,
            timeout=20,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return -1, []
    return done.returncode, done.stdout.decode(errors="replace").split()


def equivalent(task: Task, program: str, reference: str) -> bool:
    if "hidden" in task.payload:
        return all(
            bare(program, stdin) == bare(reference, stdin) for stdin, _ in task.payload["hidden"]
        )
    payload = task.payload
    setup = payload["setup"] + "\n" + payload.get("given", "")
    name = f"\ncandidate = {payload['entry_point']}" if "entry_point" in payload else ""
    return (
        bare("\n".join([payload.get("given", ""), program, setup + name, *payload["tests"]]), "")[0]
        == 0
    )


def kinds(tasks: list[Task]) -> Counter[str]:
    """Count the asserts of function environments: `call == literal`, another expression, in a
    block."""
    found: Counter[str] = Counter()
    for task in tasks:
        for test in task.payload.get("tests", []):
            last = ast.parse(test).body[-1]
            if not isinstance(last, ast.Assert):
                found["in a block"] += 1
                continue
            check = last.test
            plain = (
                isinstance(check, ast.Compare)
                and isinstance(check.left, ast.Call)
                and isinstance(check.left.func, ast.Name)
            )
            found[
                "call == literal"
                if plain and literal(check.comparators[0]) and all(map(literal, check.left.args))
                else "another expression"
            ] += 1  # type: ignore[attr-defined]
    return found


def literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mutants", type=int, default=4)
    parser.add_argument("--problems", type=int)
    parser.add_argument("--only", nargs="+", default=["codecontests", "mbpp", "humaneval"])
    parser.add_argument(
        "--list", action="store_true", help="name the mutants that are alike on all tests"
    )
    arguments = parser.parse_args()
    columns = (
        "env",
        "references",
        "accepted",
        "mutants",
        "rejected",
        "%",
        "alike on all tests",
        "wrongly accepted",
        "wrongly rejected",
        "seconds",
    )
    table = Table(*columns, box=box.MARKDOWN)
    lines: list[str] = []
    for name in arguments.only:
        env, references = env_of(name)
        splits = ["test"] if name == "humaneval" else env.splits
        tasks = sorted((t for split in splits for t in env.tasks(split)), key=lambda t: t.id)[
            : arguments.problems
        ]
        start = time.time()
        row = measure(env, tasks, references, arguments.mutants, lines.append, arguments.list)
        table.add_row(name, *row, f"{time.time() - start:.0f}")
        if count := kinds(tasks):
            lines.append(f"{name}: kinds of tests: {dict(count)}")
        env.close()
    Console(width=200).print(table)
    print("\n".join(lines))


def measure(
    env: Submissions,
    tasks: list[Task],
    references: dict[str, str],
    count: int,
    say: Callable[[str], Any],
    name_alike: bool,
) -> list[str]:
    def judged(job: tuple[Task, str, str]) -> Judged:
        return env.judge(job[0], job[2])

    with ThreadPoolExecutor(2) as pool:
        right = list(pool.map(judged, [(task, "", references[task.id]) for task in tasks]))
        for task, result in zip(tasks, right, strict=True):
            if result.outcome is not Outcome.passed:
                say(f"reference not accepted: {task.id}: {result.feedback.splitlines()[0]}")
        good = [
            task
            for task, result in zip(tasks, right, strict=True)
            if result.outcome is Outcome.passed
        ]
        jobs = [
            (task, what, program)
            for n, task in enumerate(good)
            for what, program in mutants(references[task.id], count, n)
        ]
        results = list(pool.map(judged, jobs))
        accepted = [
            job
            for job, result in zip(jobs, results, strict=True)
            if result.outcome is Outcome.passed
        ]
        same = list(
            pool.map(lambda job: equivalent(job[0], job[2], references[job[0].id]), accepted)
        )
        wrong = [
            job
            for job, result in zip(jobs, results, strict=True)
            if result.outcome is Outcome.failed
        ][:100]
        missed = list(
            pool.map(lambda job: equivalent(job[0], job[2], references[job[0].id]), wrong)
        )
    for job, equal in zip(accepted, same, strict=True):
        if equal and name_alike:
            say(f"alike: {job[0].id}: {job[1]}")
        if not equal:
            say(f"accepted, but not alike: {job[0].id}: {job[1]}")
    for job, equal in zip(wrong, missed, strict=True):
        if equal:
            say(f"rejected, but alike: {job[0].id}: {job[1]}")
    say(f"{env.name}: verdicts on mutants: {dict(Counter(str(r.outcome) for r in results))}")
    rejected = len(jobs) - len(accepted)
    figures = [
        len(tasks),
        len(good),
        len(jobs),
        rejected,
        f"{100 * rejected / max(1, len(jobs)):.1f}",
        sum(same),
        len(same) - sum(same),
        sum(missed),
    ]
    return [str(figure) for figure in figures]


if __name__ == "__main__":
    main()
