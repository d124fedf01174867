"""Hand-made trees for tests: episodes are written down as data, ids, parents and steps follow.

    make_tree(
        # episode 0, from the root, reflected on
        Ep("go left", "take lamp", stop=Stop.failure, blame=1, note="step 1 take key"),
        # rolled back to step 1 of episode 0, wins
        Ep("take key", "open door", branch_of=0, progress=(1, 2)),
    )

Observations are a function of the path of actions, so that the same actions give the same history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hypothesis import strategies as st

from leafe.core import Episode, Kind, Scope, Stop, Task, Tree, Turn, turn_id


class Ep:
    """One episode. `branch_of` names the episode whose last reflection it follows; `actions` are
    its own, from the revised action on.

    An action that begins with "!" is invalid. `progress` has one number an own action; None: the
    environment reports none. `blame` and `note` are the reflection at its end; `blame=-1` makes an
    unusable one. `counts` has one number an own action.
    """

    def __init__(
        self,
        *actions: str,
        stop: Stop = Stop.success,
        branch_of: int | None = None,
        progress: Sequence[float | None] | None = None,
        blame: int | None = None,
        note: str = "",
        scope: Scope = Scope.action,
        preamble: tuple[str, ...] = (),
        count: int = 1,
    ) -> None:
        self.actions, self.stop, self.branch_of, self.progress, self.blame = (
            actions,
            stop,
            branch_of,
            progress,
            blame,
        )
        self.note, self.scope, self.preamble, self.count = note, scope, preamble, count


DEFAULT = (
    Ep(
        "go left",
        "take lamp",
        "open door",
        stop=Stop.failure,
        progress=(1, 1, 1),
        blame=1,
        note="take key",
        count=1,
    ),
    Ep(
        "take key",
        "open box",
        stop=Stop.failure,
        branch_of=0,
        progress=(2, 2),
        blame=2,
        note="open door",
    ),
    Ep("open door", "walk out", branch_of=1, progress=(3, 4)),
)
"""A failure, a branch that got further, a branch of the branch that won."""


def make_task(task_id: str = "t0") -> Task:
    return Task(id=task_id, env="toy", split="train", instruction=f"leave the house {task_id}")


def make_tree(
    *episodes: Ep, task_id: str = "t0", tokens: Callable[[str], tuple[int, ...]] | None = None
) -> Tree:
    """The tree of these episodes (none: `DEFAULT`). `tokens` gives the sampled ids of an action
    text or reflection text."""
    tree = Tree(make_task(task_id))
    ids = tokens or (lambda text: None)
    for index, ep in enumerate(episodes or DEFAULT):
        start: str | None = None
        step = 0
        reflection: Turn | None = None
        depth = 0
        if ep.branch_of is not None:
            parent = tree.episodes[ep.branch_of]
            reflection = next(
                t for t in reversed(parent.turns) if t.kind is Kind.reflect and t.valid
            )
            assert reflection.target is not None
            trajectory = tree.trajectory(parent)
            step, depth = reflection.target, parent.depth + 1
            start = trajectory[step - 1].id if step else None
        turns: list[Turn] = []
        last = start
        said = [t.action for t in tree.path(start)]
        for nth, action in enumerate(ep.actions):
            final = nth == len(ep.actions) - 1
            valid = not action.startswith("!")
            said.append(action)
            sees = reflection is not None and (nth == 0 or ep.scope is Scope.branch)
            turn = Turn(
                id=turn_id(task_id, index, step),
                parent=last,
                task_id=task_id,
                step=step,
                kind=Kind.act,
                action_text=action,
                action=action,
                observation=f"seen {' '.join(said)}" if valid else f"there is no {action}",
                done=final and ep.stop in (Stop.success, Stop.failure),
                success=final and ep.stop is Stop.success,
                valid=valid,
                progress=None if ep.progress is None else ep.progress[nth],
                experience=reflection.id if reflection is not None and sees else None,
                tokens=ids(action),
                policy="toy",
                env_steps=1,
            )
            turns.append(turn)
            last, step = turn.id, step + 1
        if ep.blame is not None:
            text = f"s{ep.blame} : {ep.note}"
            usable = 0 <= ep.blame < step
            turns.append(
                Turn(
                    id=turn_id(task_id, index, step, Kind.reflect),
                    parent=last,
                    task_id=task_id,
                    step=step,
                    kind=Kind.reflect,
                    action_text=text,
                    valid=usable,
                    observation="" if usable else "step out of range",
                    target=ep.blame if usable else None,
                    note=ep.note if usable else "",
                    tokens=ids(text),
                    policy="toy",
                )
            )
        tree.add(
            Episode(
                task_id=task_id,
                index=index,
                stop=ep.stop,
                turns=tuple(turns),
                first_observation=f"start {task_id}",
                start=start,
                experience=reflection.id if reflection is not None else None,
                scope=ep.scope,
                depth=depth,
                preamble=ep.preamble,
                count=ep.count,
            )
        )
    return tree


@st.composite
def trees(draw: st.DrawFn, task_id: str = "t0", max_episodes: int = 6) -> Tree:
    """Random trees: roots and branches of any episode with a usable reflection, invalid actions,
    unusable reflections, progress or none."""
    words = st.sampled_from(["go", "take", "open", "!fly"])
    with_progress = draw(st.booleans())
    episodes: list[Ep] = []
    lengths: list[int] = []
    for _ in range(draw(st.integers(1, max_episodes))):
        able = [
            i for i, e in enumerate(episodes) if e.blame is not None and 0 <= e.blame < lengths[i]
        ]
        parent = draw(st.sampled_from([None, *able]))
        first = 0 if parent is None else (episodes[parent].blame or 0)
        actions = draw(st.lists(words, min_size=1, max_size=4))
        stop = draw(
            st.sampled_from(
                [
                    Stop.success,
                    Stop.failure,
                    Stop.failure,
                    Stop.horizon,
                    Stop.diverged,
                    Stop.invalid_limit,
                    Stop.budget,
                ]
            )
        )
        length = first + len(actions)
        blame = None if stop is Stop.success else draw(st.none() | st.integers(-1, length - 1))
        progress = tuple(float(draw(st.integers(0, 3))) for _ in actions) if with_progress else None
        note = draw(st.sampled_from(["use key", "use lamp", "go back"]))
        scope = draw(st.sampled_from(list(Scope)))
        preamble = draw(st.sampled_from([(), (), ("it broke",)])) if parent is None else ()
        episodes.append(
            Ep(
                *actions,
                stop=stop,
                branch_of=parent,
                progress=progress,
                blame=blame,
                note=note,
                scope=scope,
                preamble=preamble,
            )
        )
        lengths.append(length)
    return make_tree(*episodes, task_id=task_id)
