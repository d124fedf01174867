"""Table 3's question on code: how many tasks does each strategy of Stage 1 solve for the same
number of executions? MBPP, every program in the real sandbox.

    python -m bench.code_strategies                                        the default programmer, 3
    seeds
    python -m bench.code_strategies --set recall=1 --set insight=0.1       another programmer
    (studies.weak_programmer.policy)
    python -m bench.code_strategies --sweep                                a row for each setting of
    the programmer, of the environment and of the strategies
    python -m bench.code_strategies --run runs/NAME                        the same figures from a
    run folder, whatever its policy was

An execution is a submission to the judge: the paper's budget. A policy call is a submission or a
reflection. Every strategy may use the same number of
executions a task (--executions), with as many calls as that takes, so that both columns of budgets
are read off one exploration. A seed draws tasks,
programmer and samples anew. Intervals are 95 %, differences are paired by task; their intervals are
the wider of those over seeds and over tasks
(`leafe.evaluate.contrast`), and speak of other tasks alone with `--over tasks`. In a sweep every
different program is run once and its verdict remembered
(the environment is deterministic; `--remember` does it elsewhere, with the same trees). The weak
programmer is no language model: what it shows is for which
abilities an order of strategies follows, not that a model has them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

from leafe.core import Environment, Task, Tree
from leafe.envs import load_tasks, make_env
from leafe.envs.code._submissions import Judged
from leafe.envs.code.mbpp import Mbpp
from leafe.evaluate import Over, contrast, coverage_curve, mean_rate, spent
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.prompts import Prompts, load_prompt_set
from leafe.runs import RunFolder, load_trees
from studies.weak_programmer import WeakProgrammer

STRATEGIES = ("independent", "refine", "tree")
PAIRS = (("tree", "refine"), ("tree", "independent"), ("refine", "independent"))
COSTS: tuple[Literal["env_steps", "policy_calls"], ...] = ("env_steps", "policy_calls")
WORDS = {"env_steps": "executions", "policy_calls": "policy calls"}
Runs = Mapping[str, Sequence[Sequence[Tree]]]
"""By strategy, the trees of each seed, in the same order of tasks."""

SWEEP: tuple[tuple[str, str], ...] = (
    ("as it is", ""),
    ("nothing is understood", "repair=0 recall=0 insight=0"),
    ("every reading alike, 0.2", "insight=0.2 heed=0.2"),
    ("every reading alike, 0.5", "repair=0.5 recall=0.5 heed=0.5"),
    ("advice is never heeded", "heed=0"),
    ("advice is heeded at 0.4", "heed=0.4"),
    ("advice is always heeded", "heed=1"),
    ("reflections see the cause at 0.1", "insight=0.1"),
    ("reflections see no more than acting does", "insight=0.2"),
    ("reflections see the cause at 0.9", "insight=0.9"),
    ("reflections name any step", "lost=1"),
    ("reflections never err about the step", "lost=0"),
    ("reflections go back to the last step", "blame=last"),
    ("refinement shows verdicts without programs", "prompts.attempt="),
    ("the same, and such a verdict is understood at 0.8", "prompts.attempt= recall=0.8"),
    ("its own program is repaired at 0.05", "repair=0.05"),
    ("its own program is repaired at 0.5", "repair=0.5"),
    ("what stands in the prompt is read again, half", "again=0.5"),
    ("what stands in the prompt is read again, wholly", "again=1"),
    ("the same, and advice stays in the context", "again=1 explore.scope=branch"),
    ("no habits, only slips", "habits=0 slip=0.4"),
    ("nearly all mistakes are habits", "habits=0.9"),
    ("no test is shown", "env.shown_tests=0"),
    ("all tests are shown", "env.shown_tests=3"),
    ("reflects after each submission", "explore.reflect_every=1"),
    ("refinement shows one attempt", "explore.max_attempts_in_prompt=1"),
    ("two submissions an episode", "env.horizon=2"),
    ("eight submissions an episode", "env.horizon=8"),
)
"""Settings beside the default: (what it is, changes)."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=60, help="of each seed")
    parser.add_argument("--split", default="train")
    parser.add_argument("--executions", type=int, default=32, help="of each task")
    parser.add_argument("--budgets", type=int, nargs="+", default=[4, 8, 16, 24, 32])
    whose = "the programmer's options; environment.KEY, explore.KEY and prompts.KEY for theirs"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=whose)
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument(
        "--over",
        choices=["runs", "tasks"],
        default="runs",
        help="what the intervals of differences speak of",
    )
    parser.add_argument("--remember", action="store_true", help="run every different program once")
    parser.add_argument("--only", nargs="+", type=int, help="rows of the sweep, from 0")
    parser.add_argument("--run", type=Path, help="a run folder")
    args = parser.parse_args()
    args.budgets = [b for b in args.budgets if b <= args.executions]
    if args.run:
        report(args, stored(args.run), str(args.run))
    elif args.sweep:
        args.remember = True
        print(
            "| setting | changes | independent | refine | tree | tree − refine | tree − "
            "independent | refine − independent |"
        )
        print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for number, (what, changes) in enumerate(SWEEP):
            if args.only is None or number in args.only:
                runs = explored(args, [*args.set, *changes.split()])
                print(sweep_row(what, changes, runs, args.executions, args.over), flush=True)
    else:
        began = time.monotonic()
        runs = explored(args, args.set)
        report(
            args,
            runs,
            (
                f"{args.seeds} seeds x {args.tasks} tasks of MBPP {args.split}, "
                f"{args.executions} executions a task; {' '.join(args.set)}"
            ),
        )
        print(f"{time.monotonic() - began:.0f} s")


class Remembering(Mbpp):
    """The environment mbpp, which runs a program that it has judged no second time."""

    judged: ClassVar[dict[tuple[Any, ...], Judged]] = {}

    def judge(self, task: Task, program: str) -> Judged:
        key = (task.id, program, self.shown_tests, self.limits.seconds)
        if key not in self.judged:
            self.judged[key] = super().judge(task, program)
        return self.judged[key]


def explored(args: argparse.Namespace, changes: Sequence[str]) -> Runs:
    """The trees that all strategies grow on the same tasks."""
    parts: dict[str, dict[str, Any]] = {"": {}, "env": {}, "explore": {}, "prompts": {}}
    for change in changes:
        key, _, text = change.partition("=")
        part, _, name = key.rpartition(".")
        try:
            parts[part][name] = json.loads(text)
        except json.JSONDecodeError:
            parts[part][name] = text
    return {
        strategy: [
            asyncio.run(grow(strategy, seed, args, parts, {"seconds": 1} | parts["env"]))
            for seed in range(args.seeds)
        ]
        for strategy in STRATEGIES
    }


async def grow(
    strategy: str, seed: int, args: argparse.Namespace, parts: Mapping[str, Any], env: Any
) -> list[Tree]:
    def make() -> Environment:
        return Remembering(**env) if args.remember else make_env("mbpp", **env)

    concurrency = 8
    pool = EnvPool.fitting(make, concurrency, 2, 120.0)
    tasks = load_tasks(pool.facts, args.split, args.tasks, seed)
    config = ExploreConfig(
        strategy=strategy,
        limits={"env_steps": args.executions},
        concurrency=concurrency,
        seed=seed,
        **parts["explore"],
    )
    policy = WeakProgrammer(**{"seconds": env["seconds"], "seed": seed} | parts[""])
    prompts = Prompts(load_prompt_set("mbpp"), pool.facts.actions_help)
    prompts = prompts.with_texts(**parts["prompts"])
    found = await explore(policy, pool, tasks, prompts, config)
    pool.close()
    await policy.close()
    return list(found.trees.values())


def stored(folder: Path) -> Runs:
    """What a run explored: the seeds that all of its strategies have finished."""
    run = RunFolder.read(folder)
    found: dict[str, dict[str, list[Tree]]] = {}
    for path in sorted((folder / "explore").glob("*")):
        seed, _, strategy = path.name.rpartition(".")
        if strategy in STRATEGIES and run.done(f"explore/{path.name}") is not None:
            found.setdefault(strategy, {})[seed] = list(load_trees(path).values())
    seeds = [
        seed
        for seed in next(iter(found.values()), {})
        if all(seed in runs for runs in found.values())
    ]
    if not seeds:
        raise SystemExit(
            f"{folder} has no seed that was explored to the end with all of its "
            "strategies: leafe explore goes on with it."
        )
    return {strategy: [runs[seed] for seed in seeds] for strategy, runs in found.items()}


def solved_by(
    trees: Sequence[Tree], cost: Literal["env_steps", "policy_calls"], budget: int
) -> dict[str, float]:
    """By task, whether it was solved within the budget."""
    return {tree.task.id: coverage_curve([tree], cost).at(budget) for tree in trees}


def covered(
    runs: Sequence[Sequence[Tree]], cost: Literal["env_steps", "policy_calls"], budget: int
) -> str:
    found = mean_rate([solved_by(trees, cost, budget) for trees in runs])
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def difference(
    runs: Runs,
    a: str,
    b: str,
    cost: Literal["env_steps", "policy_calls"],
    budget: int,
    over: Over = "runs",
) -> str:
    """In points, with the interval."""
    pairs = []
    for mine, other in zip(runs[a], runs[b], strict=True):
        one, two = solved_by(mine, cost, budget), solved_by(other, cost, budget)
        pairs.append({task: one[task] - two[task] for task in one if task in two})
    found = contrast(f"{a} - {b}", 1, pairs, over)
    return f"{100 * found.value:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


def report(args: argparse.Namespace, runs: Runs, title: str) -> None:
    print(f"\n{title}\n")
    names = [s for s in STRATEGIES if s in runs]
    pairs = [(a, b) for a, b in PAIRS if a in runs and b in runs]
    for cost in COSTS:
        print(
            f"| {WORDS[cost]} a task | "
            + " | ".join(names)
            + " | "
            + " | ".join(f"{a} − {b}" for a, b in pairs)
            + " |"
        )
        print("| --- " * (1 + len(names) + len(pairs)) + "|")
        for budget in args.budgets:
            cells = [covered(runs[s], cost, budget) for s in names] + [
                difference(runs, a, b, cost, budget, args.over) for a, b in pairs
            ]
            print(f"| {budget} | " + " | ".join(cells) + " |")
        print()
    print(
        "| strategy | tasks | solved | executions | policy calls | reflections | unusable "
        "| rollbacks to step 0 / later | episodes |"
    )
    print("| --- " * 9 + "|")
    for name in names:
        trees = [tree for run in runs[name] for tree in run]
        cost_ = spent(trees)
        reflections = [r for t in trees for r in t.reflections]
        back = [r.target for r in reflections if r.valid]
        figures = [
            len(trees),
            sum(t.solved for t in trees),
            cost_.env_steps,
            cost_.policy_calls,
            len(reflections),
            len(reflections) - len(back),
        ]
        print(
            f"| {name} | "
            + " | ".join(f"{n:,}" for n in figures)
            + f" | {back.count(0):,} / {len(back) - back.count(0):,} | {cost_.episodes:,} |"
        )
    print()


def sweep_row(what: str, changes: str, runs: Runs, budget: int, over: Over = "runs") -> str:
    cells = [covered(runs[s], "env_steps", budget) for s in STRATEGIES] + [
        difference(runs, a, b, "env_steps", budget, over) for a, b in PAIRS
    ]
    return f"| {what} | {changes} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
