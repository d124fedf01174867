"""Both stages on an environment, in small: a scripted policy fails, reflects, goes back and wins;
what it learnt goes into a tiny model.

    trees = both_stages("sokoban", tmp_path, solve=my_solver, wrong="up")

The environment, its options, the prompt set and what is trained on are the recipe's; the policy is
a script, the model a random one of two layers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leafe.core import Environment, Request, Stop, Tree
from leafe.core import Task as LeafeTask
from leafe.distill import build, preset, train
from leafe.envs import load_tasks, make_env
from leafe.explore import EnvPool, ExploreConfig, explore
from leafe.policies.scripted import ScriptedPolicy
from leafe.prompts import Prompts, load_prompt_set
from leafe.recipes import load_recipe
from tests.tiny import byte_tokenizer, tiny_checkpoint

ADVICE = "Do what wins."


def both_stages(
    recipe: str,
    tmp_path: Path,
    *,
    solve: Callable[[Environment, LeafeTask], Sequence[str]],
    wrong: str,
    options: Mapping[str, Any] | None = None,
    tasks: int = 2,
    split: str | None = None,
    horizon: int = 4,
) -> dict[str, Tree]:
    """Explore `tasks` tasks of the recipe's environment and distil the trees; returns them.
    AssertionError where any of it does not come out.

    `solve` gives the actions that win, from the start; `wrong` is an action that never does: the
    first attempt is nothing else, `horizon` times.
    `options` are laid over the recipe's environment options.
    """
    setup = load_recipe(recipe)
    env_options = setup.env.options | dict(options or {})
    prompts_set = load_prompt_set(setup.prompts)

    def make() -> Environment:
        return make_env(setup.env.name, **env_options)

    with make() as env:
        chosen = load_tasks(env, split or setup.tasks.train_split, tasks)
        solutions = {task.id: list(solve(env, task)) for task in chosen}
        prompts = Prompts(prompts_set, env.actions_help, setup.history)
    assert all(solutions.values()), "the solver found nothing"
    longest = max(horizon, *(len(s) for s in solutions.values()))
    shots = sum(m.role == "assistant" for m in prompts_set.shots)

    def written(action: str) -> str:
        return {
            "react": f"Thought: so.\nAction: {action}",
            "code": f"So.\n```python\n{action}\n```",
        }.get(prompts_set.action, action)

    def script(request: Request) -> str:
        last = request.messages[-1].content
        said = [m.content for m in request.messages if m.role == "assistant"][shots:]
        if request.schema is not None or last.endswith(prompts_set.reflect[-30:]):
            return json.dumps({"step": 0, "experience": ADVICE})
        solution = solutions[request.cache_key]
        on_the_way = said[:1] == [written(solution[0])] or (not said and ADVICE in last)
        return written(solution[len(said)] if on_the_way and len(said) < len(solution) else wrong)

    config = setup.explore.model_copy(
        update={
            "limits": {"policy_calls": float(2 * longest + 8)},
            "horizon": longest,
            "max_invalid_actions": longest,
            "reflect_every": 0,
            "concurrency": 2,
        }
    )
    trees = asyncio.run(_explore(script, make, chosen, prompts, config))
    for tree in trees.values():
        first, rescued = tree.episodes[0], tree.episodes[-1]
        assert not first.success, f"{tree.task.id}: {wrong!r} won"
        assert first.stop in (Stop.failure, Stop.horizon, Stop.invalid_limit), (
            f"{tree.task.id}: {first.stop} {first.error}"
        )
        assert rescued.success, (
            f"{tree.task.id}: {rescued.stop} {rescued.error} "
            f"{[t.observation for t in rescued.acts][-1:]}"
        )
        assert rescued.depth == 1
        played = [
            a.strip().replace("\r\n", "\n") for a in solutions[tree.task.id]
        ]  # as a program is read
        assert [t.action.strip() for t in rescued.acts] == played[: len(rescued.acts)]
    trained = preset(
        "paper",
        num_train_epochs=None,
        max_steps=1,
        rehearsal_batch_size=1,
        counterfactual_batch_size=1,
        rehearsal_fraction=1.0,
        learning_rate=1e-3,
    )
    data = build(trees, prompts, trained, 0)
    assert len(data.part("counterfactual")) == len(chosen)
    assert data.part("rehearsal")
    model = tiny_checkpoint(
        tmp_path / "model",
        layers=1,
        width=16,
        heads=2,
        kv_heads=1,
        context=1 << 16,
        tokenizer=byte_tokenizer(),
    )
    result = train(model, tmp_path / "out", data, None, trained)
    assert result.steps == 1
    assert (tmp_path / "out" / "model.safetensors").is_file()
    return trees


async def _explore(
    script: Callable[[Request], str],
    make: Callable[[], Environment],
    chosen: Sequence[LeafeTask],
    prompts: Prompts,
    config: ExploreConfig,
) -> dict[str, Tree]:
    pool = EnvPool(make, size=2)
    try:
        return (await explore(ScriptedPolicy(script), pool, chosen, prompts, config)).trees
    finally:
        pool.close()
