"""The commands `export` and `import`: a run's samples for other trainers, and other tools' logs as
a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leafe.cli._envs import console as _console

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leafe.core import Environment, Task
    from leafe.data import Format, Imported, LoggedEpisode, Problems
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
            "--stage",
            help="Instead of an arm: a stage's folder (explore/tree, distill/seed1.leafe+).",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="With --stage explore/...: the preset that selects samples; default: leafe+.",
        ),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            help="Measure rows with the tokenizer of this folder or model; default: the run's.",
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", help="Leave out (and count) samples of more tokens."),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(
            "--push",
            help="USER/NAME: also upload to the Hugging Face hub, with your own login; private.",
        ),
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="With --push: readable by everybody.")
    ] = False,
) -> None:
    """Write the samples of a run as files for another trainer, with a dataset card."""
    from leafe.core import UserError
    from leafe.data import TARGETS, episodes_of, samples_of, tokenizer_of
    from leafe.data import export as write_export
    from leafe.data import push as upload
    from leafe.pipeline import recipe_of
    from leafe.runs import RunFolder

    target = next((t for t in TARGETS if t == to), None)
    if target is None:
        raise UserError(f"There is no export to {to!r}: choose one of {', '.join(TARGETS)}.")
    if out is None:
        raise UserError("An export needs a new folder: give --out FOLDER.")
    if public and push is None:
        raise UserError("--public concerns an upload: give --push USER/NAME too.")
    if target == "chat" and (arm is not None or preset is not None):
        raise UserError(
            "--to chat writes whole episodes of an exploration: give --stage "
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
    done = write_export(source, target, out, tokenizer=measure, max_length=max_length)
    for name, rows in done.files.items():
        _print(f"{done.folder / name}: {rows} rows")
    for reason, number in done.left_out.items():
        _print(f"left out: {number} x {reason}")
    for part, lengths in done.lengths.parts.items() if done.lengths is not None else ():
        _print(f"{part}: rows of {min(lengths)} to {max(lengths)} tokens")
    if done.warning:
        _print(f"warning: {done.warning}")
    for what, number in done.changed.items():
        _print(f"note: {number} samples: {what}")
    _print(f"The card, with how to load it: {done.folder / 'README.md'}")
    if push is not None:
        _print(f"Uploaded: {upload(done.folder, push, public=public)}")


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
                "Replay the episodes in this recipe's environment; explore and run continue "
                "from them."
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
        typer.Option("--env", help="Without a recipe: replay them in this environment."),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", help="key=value: an option of that environment; may be repeated."),
    ] = None,
    prompts: Annotated[
        str,
        typer.Option(
            "--prompts", help="With --env: the prompt set, which parses actions out of texts."
        ),
    ] = "plain",
    split: Annotated[
        str, typer.Option("--split", help="With --env: the split of their tasks.")
    ] = "train",
    seed: Annotated[
        int, typer.Option("--seed", help="With --env: the seed that draws its tasks.")
    ] = 0,
    success_at: Annotated[
        float,
        typer.Option(
            "--success-at",
            help="The least reward of a success, where the log does not say.",
        ),
    ] = 1.0,
) -> None:
    """Read existing episodes into a run, as first attempts to reflect on and to roll back from."""
    from leafe.core import UserError
    from leafe.data import FORMATS, Problems, read_log

    chosen = next((f for f in FORMATS if f == format), None)
    if chosen is None:
        raise UserError(
            f"There is no format {format!r} to import: choose one of {', '.join(FORMATS)}."
        )
    if recipe is not None and (env is not None or option):
        raise UserError(
            "A recipe has its own environment: give --recipe or --env, not both; change the "
            "recipe's environment options with --set."
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
        loaded = _import_recipe(out, file, env, option or [], prompts, split, seed)
    records = list(read_log(file, chosen, problems))
    found = _build_trees(
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


def _import_recipe(
    out: Path,
    file: Path,
    env: str | None,
    options: Sequence[str],
    prompts: str,
    split: str,
    seed: int,
) -> Recipe:
    """A recipe for a run that only holds imported trees; its policy cannot be made."""
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


def _build_trees(
    records: Sequence[LoggedEpisode],
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

    prompt_set = load_prompt_set(recipe.prompts)

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
            prompts = Prompts(prompt_set, pool.facts.actions_help, recipe.history)
            return await replayed(
                records,
                pool,
                tasks,
                prompts,
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
    """Write the run folder; returns the stage that holds the trees. `finished`: no recipe continues
    from it."""
    import hashlib
    import json

    from leafe.core import UserError
    from leafe.data import write_trees
    from leafe.envs import load_tasks, make_env
    from leafe.pipeline import config_of, plan
    from leafe.runs import RunFolder, atomic_write

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
            f"The recipe {recipe.name} does not explore by tree, the strategy that continues from "
            "known episodes: add tree to its strategies."
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
    atomic_write(out / stage.name / "import.json", json.dumps(facts, indent=1) + "\n")
    return stage.name


def _report(found: Imported, problems: Problems, out: Path, stage: str, recipe: str | None) -> None:
    for sentence in problems.sentences:
        _print(sentence)
    if problems.unreported:
        _print(f"... and {problems.unreported} more like these.")
    stops = ", ".join(f"{number} {stop}" for stop, number in found.stops.items())
    how = "replayed in their environment" if found.verified else "taken as they are, not replayed"
    _print(
        f"{found.episodes} episodes of {len(found.trees)} tasks, {how}: {stops}; "
        f"{found.solved} tasks solved."
    )
    for kind, number in problems.left_out.items():
        _print(f"left out: {number} x {kind}")
    for kind, number in problems.noted.items():
        _print(f"noted: {number} x {kind}")
    _print(f"They are in {out / stage}.")
    export = f"Their samples: leafe export {out} --stage {stage} --preset rft --out FOLDER"
    if found.episodes == sum(found.stops.get(stop, 0) for stop in ("diverged", "env_error")):
        first = problems.sentences[0] if problems.sentences else "no reason is known"
        _print(
            "There is nothing to continue from: the environment reproduced no episode of the log. "
            f"The first: {first} Compare the environment's options, version and seed with those "
            "of the log, and what the log calls an action; then import it again into another "
            "folder."
        )
    elif recipe is not None:
        _print(
            f"Continue with: leafe run {recipe} --name {out.name} --runs {out.parent}, with the "
            "same changes as here. The imported episodes count against explore.limits: up to "
            f"{found.calls} policy calls a task."
        )
    elif found.verified:
        _print(f"{export}. To continue exploring from them, import with --recipe.")
    else:
        _print(f"{export}; pairs of success over failure: --to dpo.")


def _print(text: str) -> None:
    _console().print(text, highlight=False, markup=False)
