"""A hypothesis strategy that grows any tree that `Tree` accepts: every field drawn, any text,
counts, reflections in mid-episode.

`tests/trees.py` makes trees that read like episodes; these are for what must hold for all records:
writing, reading, deriving.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from leafe.core import Episode, Kind, Scope, Stop, Task, Tree, Turn, Usage, turn_id

anything = st.text(st.characters(exclude_categories=()), max_size=8)
"""Any text that a model or an environment can come up with: newlines, NUL, line separators, lone
surrogates."""
numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-3, 3).map(float)
counts = st.integers(1, 128)
leaves = st.none() | st.booleans() | st.integers() | numbers | anything
plain_json = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(anything, inner, max_size=2),
    max_leaves=4,
)
tasks = st.builds(
    Task,
    id=anything,
    env=anything,
    split=anything,
    instruction=anything,
    payload=st.dictionaries(anything, plain_json, max_size=2),
)


@st.composite
def grown_trees(draw: st.DrawFn, task: Task | None = None, max_episodes: int = 6) -> Tree:
    """A tree of root episodes, branches asked for by a reflection, and paths that share a prefix
    with an earlier one."""
    tree = Tree(task or draw(tasks))
    # what turns hold is drawn a few times a tree and shared out, so that examples are quick to
    # draw; their shape is drawn turn by turn
    said = st.sampled_from(draw(st.lists(_said(), min_size=1, max_size=2)))
    for _ in range(draw(st.integers(0, max_episodes))):
        tree.add(draw(_episode(tree, said)))
    return tree


@st.composite
def _episode(draw: st.DrawFn, tree: Tree, contents: st.SearchStrategy[dict[str, Any]]) -> Episode:
    task, index = tree.task, len(tree.episodes)
    start: str | None = None
    reflection: Turn | None = None
    depth = 0
    usable = [r for r in tree.reflections if r.valid]
    acts = [t.id for t in tree if t.kind is Kind.act]
    how = draw(st.sampled_from(["root"] + ["branch"] * 2 * bool(usable) + ["shared"] * bool(acts)))
    if how == "branch":
        reflection = draw(st.sampled_from(usable))
        assert reflection.target is not None
        read = tree.path(reflection.id)
        start = read[reflection.target - 1].id if reflection.target else None
        depth = tree.episode_of(reflection.id).depth + 1
    elif how == "shared":
        start = draw(st.sampled_from(acts))
    stop = draw(st.sampled_from(Stop))
    scope = draw(st.sampled_from(Scope))
    last, step = start, tree[start].step + 1 if start is not None else 0
    turns: list[Turn] = []
    for nth in range(draw(st.integers(0, 3))):
        seen = reflection is not None and (nth == 0 or scope is Scope.branch)
        experience = reflection.id if reflection is not None and seen else None
        said = draw(contents) | {
            "progress": draw(st.none() | st.integers(-1, 3).map(float)),
            "count": draw(counts),
        }
        turns.append(
            Turn(
                id=turn_id(task.id, index, step),
                parent=last,
                task_id=task.id,
                step=step,
                kind=Kind.act,
                experience=experience,
                env_steps=1,
                **said,
            )
        )
        last, step = turns[-1].id, step + 1
        turns += draw(_reflections(task.id, index, step, last, contents))
    words = draw(contents)
    return Episode(
        task_id=task.id,
        index=index,
        stop=stop,
        turns=tuple(turns),
        first_observation=words["observation"],
        start=start,
        experience=reflection.id if reflection is not None else None,
        scope=scope,
        depth=depth,
        preamble=(words["thought"],) * draw(st.integers(0, 2)),
        count=draw(counts),
        replayed=index % 3,
        seconds=words["seconds"],
        error=words["action"],
    )


@st.composite
def _reflections(
    draw: st.DrawFn,
    task_id: str,
    index: int,
    step: int,
    last: str,
    contents: st.SearchStrategy[dict[str, Any]],
) -> list[Turn]:
    out = []
    for nth in range(draw(st.integers(0, 2))):
        target = draw(st.none() | st.integers(0, step - 1))
        identity = turn_id(task_id, index, step, Kind.reflect, nth)
        said = draw(contents)
        out.append(
            Turn(
                id=identity,
                parent=last,
                task_id=task_id,
                step=step,
                kind=Kind.reflect,
                target=target,
                note=said["thought"],
                **(said | {"valid": target is not None}),
            )
        )
    return out


@st.composite
def _said(draw: st.DrawFn) -> dict[str, Any]:
    """What a turn holds beside its place in the tree."""
    return {
        "action_text": draw(anything),
        "action": draw(anything),
        "thought": draw(anything),
        "observation": draw(anything),
        "policy": draw(anything),
        "reward": draw(numbers),
        "done": draw(st.booleans()),
        "success": draw(st.booleans()),
        "valid": draw(st.booleans()),
        "usage": draw(st.builds(Usage, *[st.integers(0, 9)] * 3)),
        "tokens": draw(st.none() | st.lists(st.integers(0, 10**6), max_size=3).map(tuple)),
        "logprob": draw(st.none() | numbers),
        "seconds": draw(numbers),
        "finish": draw(st.sampled_from(["stop", "length"])),
    }
