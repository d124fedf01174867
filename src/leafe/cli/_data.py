"""Data out and in: a run's samples for other trainers, and episodes that somebody has already as a
run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leafe.cli._envs import console as _console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leafe.core import Environment, Task
    from leafe.data import Format, Imported, Logged, Problems
    from leafe.recipes import Recipe

Run = Annotated[Path, typer.Argument(help="A run folder.")]
Target = Annotated[
    str,
    typer.Option(
        "--to",
        help=(
            "trl, sharegpt (LLaMA-Factory), axolotl, verl, dpo (preference pairs), or chat "
            "(whole episodes)."
        ),
    ),
]


def export(
    run: Run,
    arm: Annotated[
        str | None, typer.Argument(help="The arm whose training samples are written.")
    ] = None,
    to: Target = "trl",
    out: Annotated[Path | None, typer.Option("--out", help="A new or empty folder.")] = None,
    stage: Annotated[
        str | None,
        typer.Option(
            "--stage", help="Not an arm but a stage's folder: explore/tree, distill/seed1.leafe+."
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="With --stage explore/...: what is selected from the trees; default: leafe+.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            help="Measure rows with this folder's or model's tokenizer; default: the run's.",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", help="Leave out, and count, samples of more tokens."),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            "--push",
            help="USER/NAME: upload it to the Hugging Face hub too, with your own login; private.",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push: everybody may read it.")
    ] = False,
) -> None:
    """Write the samples of a run as files for another trainer, with a dataset card."""
    from leafe.core import UserError
    from leafe.data import TARGETS, episodes_of, samples_of, tokenizer_of
    from leafe.data import export as written
    from leafe.data import push as pushed
    from leafe.pipeline import recipe_of
    from leafe.runs import RunFolder

    target = next((t for t in TARGETS if t == to), None)
    if target is None:
        raise UserError(f"There is no export to {to!r}: choose one of {', '.join(TARGETS)}.")
    if out is None:
        raise UserError("Say with --out which new folder the export shall go to.")
    if public and push is None:
        raise UserError(
            "--public says who may read what --push uploads: give --push USER/NAME too."
        )
    if target == "chat" and (arm is not None or preset is not None):
        raise UserError(
            "--to chat writes the whole episodes of an exploration: give --stage "
            "explore/..., and no arm or preset."
        )
    if target == "chat" and (tokenizer is not None or max_length is not None):
        raise UserError(
            "--to chat writes whole episodes: --tokenizer and --max-length are for samples."
        )
    folder = RunFolder.read(run)
    source = (
        episodes_of(folder, stage)
        if target == "chat"
        else samples_of(folder, arm, stage, preset, pairs=target == "dpo")
    )
    measure = tokenizer_of(folder, recipe_of(folder), tokenizer) if target != "chat" else None
    done = written(source, target, out, tokenizer=measure, max_length=max_length)
    console = _console()
    for name, rows in done.files.items():
        console.print(f"{done.folder / name}: {rows} rows", highlight=False, markup=False)
    for reason, number in done.left_out.items():
        console.print(f"left out: {number} x {reason}", highlight=False, markup=False)
    for part, lengths in done.lengths.parts.items() if done.lengths is not None else ():
        console.print(
            f"{part}: rows of {min(lengths)} to {max(lengths)} tokens",
            highlight=False,
            markup=False,
        )
    if done.warning:
        console.print(f"warning: {done.warning}", highlight=False, markup=False)
    for what, number in done.changed.items():
        console.print(f"note: {number} samples: {what}", highlight=False, markup=False)
    console.print(
        f"The card, with how to load it: {done.folder / 'README.md'}", highlight=False, markup=False
    )
    if push is not None:
        console.print(
            f"Uploaded: {pushed(done.folder, push, public=public)}", highlight=False, markup=False
        )


def import_(
    file: Annotated[
        Path,
        typer.Argument(
            help="The log: JSON lines, an Inspect log, or verifiers' traces (a file or its folder)."
        ),
    ],
    format: Annotated[str, typer.Option("--format", help="chat, inspect or verifiers.")],
    out: Annotated[Path, typer.Option("--out", help="The new run folder.")],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help=(
                "Play the episodes again in this recipe's environment; explore and run go on "
                "with them."
            ),
        ),
    ] = None,
    override: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="key=value: a change to the recipe, as for run; may be repeated."
        ),
    ] = None,
    env: Annotated[
        str | None,
        typer.Option("--env", help="Without a recipe: play them again in this environment."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="key=value: an option of that environment; may be repeated."),
    ] = None,
    prompts: Annotated[
        str,
        typer.Option(
            "--prompts", help="With --env: the prompt set, which reads the action out of a text."
        ),
    ] = "plain",
    split: Annotated[
        str, typer.Option("--split", help="With --env: the split whose tasks they are.")
    ] = "train",
    seed: Annotated[
        int, typer.Option("--seed", help="With --env: the seed that its tasks are drawn with.")
    ] = 0,
    success_at: Annotated[
        float,
        typer.Option(
            "--success-at",
            help="The reward from which an episode is a success, where the log does not say.",
        ),
    ] = 1.0,
) -> None:
    """Read episodes that are there already into a run: known first attempts, to reflect on and to
    roll back from."""
    from leafe.core import UserError
    from leafe.data import FORMATS, Problems, read_log

    chosen = next((f for f in FORMATS if f == format), None)
    if chosen is None:
        raise UserError(
            f"There is no format {format!r} to import: choose one of {', '.join(FORMATS)}."
        )
    if recipe is not None and (env is not None or option):
        raise UserError(
            "A recipe names its environment itself: give --recipe or --env, not both; its "
            "environment's options are changed with --set."
        )
    if override and recipe is None:
        raise UserError("--set changes a recipe: give --recipe too.")
    if option and env is None:
        raise UserError("--option is an option of the environment: give --env too.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: an import goes into a new run folder.")
    problems = Problems()
    if recipe is not None:
        from leafe.recipes import load_recipe

        loaded = load_recipe(recipe, override or ())
    else:
        loaded = _stand_in(out, file, env, option or [], prompts, split, seed)
    records = list(read_log(file, chosen, problems))
    found = _taken(
        records,
        loaded,
        recipe is not None,
        env is not None or recipe is not None,
        success_at,
        problems,
    )
    if not found.episodes:
        raise UserError(
            f"No episode of {file} could be taken. The first: "
            f"{problems.sentences[0] if problems.sentences else 'there is none'}"
        )
    stage = _write(out, file, chosen, loaded, found, problems, finished=recipe is None)
    _report(found, problems, out, stage, recipe)


def _stand_in(
    out: Path,
    file: Path,
    env: str | None,
    options: Sequence[str],
    prompts: str,
    split: str,
    seed: int,
) -> Recipe:
    """A recipe for a run that only holds imported trees: nothing but its environment is one that
    can be made."""
    from leafe.data import CHAT_PROMPTS, IMPORTED_ENV
    from leafe.recipes import parse_options, parse_recipe

    values: dict[str, Any] = {
        "name": out.name,
        "about": f"Episodes imported from {file.name}.",
        "seeds": [seed],
        "policy": {"kind": IMPORTED_ENV, "model": IMPORTED_ENV},
        "env": {"name": env or IMPORTED_ENV, "options": parse_options(options)},
        "prompts": prompts if env else CHAT_PROMPTS,
        "tasks": {"train_split": split},
        "evaluate": {"samples": 1, "k": [1]},
    }
    return parse_recipe(values, "The import")


def _taken(
    records: Sequence[Logged],
    recipe: Recipe,
    by_recipe: bool,
    replay: bool,
    success_at: float,
    problems: Problems,
) -> Imported:
    import asyncio

    from leafe.core import UserError
    from leafe.data import as_logged, replayed
    from leafe.envs import load_tasks, make_env
    from leafe.explore import EnvPool
    from leafe.prompts import Prompts, load_prompt_set

    if not replay:
        return as_logged(records, success_at=success_at, problems=problems)

    def make() -> Environment:
        return make_env(recipe.env.name, **recipe.env.options)

    words = load_prompt_set(recipe.prompts)

    async def main() -> Imported:
        pool = EnvPool.fitting(make, 64, recipe.env.workers, recipe.env.timeout)
        try:
            tasks: dict[str, Task] = {}
            try:
                count = recipe.tasks.train if by_recipe else None
                tasks = {
                    t.id: t
                    for t in load_tasks(
                        pool.facts, recipe.tasks.train_split, count, recipe.seeds[0]
                    )
                }
            except UserError:
                if by_recipe or not any(record.payload is not None for record in records):
                    raise
            reads = Prompts(words, pool.facts.actions_help, recipe.history)
            return await replayed(
                records,
                pool,
                tasks,
                reads,
                problems=problems,
                seed=recipe.seeds[0],
                success_at=success_at,
                given=not by_recipe,
            )
        finally:
            pool.close()

    return asyncio.run(main())


def _write(
    out: Path,
    file: Path,
    format: Format,
    recipe: Recipe,
    found: Imported,
    problems: Problems,
    finished: bool,
) -> str:
    """The run folder; the name of the stage that holds the trees. `finished`: nothing goes on with
    it."""
    import hashlib

    from leafe.core import UserError
    from leafe.data import write_trees
    from leafe.envs import load_tasks, make_env
    from leafe.pipeline import config_of, plan
    from leafe.runs import RunFolder

    stage = next(
        (
            s
            for s in plan(recipe)
            if s.kind == "explore" and s.what == "tree" and not s.needs and not s.variant.control
        ),
        None,
    )
    if stage is None:
        raise UserError(
            f"The recipe {recipe.name} does not explore by tree, which goes on from known "
            "episodes: add tree to its strategies."
        )
    if file.is_dir():
        digest = "of a folder: none"
    else:
        with file.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    facts = {
        "file": file.name,
        "sha256": digest,
        "format": format,
        "episodes": found.episodes,
        "verified": found.verified,
        "stops": dict(found.stops),
        "left_out": dict(problems.left_out),
        "noted": dict(problems.noted),
        "sentences": problems.sentences,
    }
    with RunFolder.open(
        out, config_of(recipe), seeds={str(nth): seed for nth, seed in enumerate(recipe.seeds)}
    ) as run:
        tasks = None
        if not finished:
            with make_env(recipe.env.name, **recipe.env.options) as env:
                tasks = load_tasks(
                    env, recipe.tasks.train_split, recipe.tasks.train, recipe.seeds[0]
                )
        write_trees(run.stage(stage.name), found, tasks)
        run.metric(stage=stage.name, imported=found.episodes)
        if finished:
            run.finish(stage.name, {"imported": facts, "stops": dict(found.stops), "seconds": 0.0})
    _note(out / stage.name / "import.json", facts)
    return stage.name


def _note(path: Path, facts: dict[str, Any]) -> None:
    import json

    from leafe.runs import atomic_write

    atomic_write(path, json.dumps(facts, indent=1) + "\n")


def _report(found: Imported, problems: Problems, out: Path, stage: str, recipe: str | None) -> None:
    console = _console()

    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    for sentence in problems.sentences:
        say(sentence)
    if problems.unsaid:
        say(f"... and {problems.unsaid} more like these.")
    ends = ", ".join(f"{number} {stop}" for stop, number in found.stops.items())
    how = (
        "played again in their environment"
        if found.verified
        else "taken as they stand, without an environment"
    )
    say(
        f"{found.episodes} episodes of {len(found.trees)} tasks, {how}: {ends}; "
        f"{found.solved} tasks solved."
    )
    for kind, number in problems.left_out.items():
        say(f"left out: {number} x {kind}")
    for kind, number in problems.noted.items():
        say(f"noted: {number} x {kind}")
    say(f"They are in {out / stage}.")
    lost = sum(found.stops.get(stop, 0) for stop in ("diverged", "env_error"))
    if lost == found.episodes:
        first = problems.sentences[0] if problems.sentences else "it does not say what"
        say(
            "Nothing can be gone on with: no episode came out of its environment as the "
            f"log has it. The first: {first} Compare the environment's options, "
            "version and seed with those of the log, and what the log calls an action; "
            "then import it again into another folder."
        )
    elif recipe is not None:
        say(
            f"Go on with: leafe run {recipe} --name {out.name} --runs {out.parent}, with "
            "the same changes as here. What is known counts against "
            f"explore.limits: up to {found.calls} policy calls a task."
        )
    elif found.verified:
        say(
            f"Their samples: leafe export {out} --stage {stage} --preset rft --out FOLDER. "
            "To go on exploring from them, import with --recipe."
        )
    else:
        say(
            f"Their samples: leafe export {out} --stage {stage} --preset rft --out FOLDER; "
            "pairs of success over failure: --to dpo."
        )
