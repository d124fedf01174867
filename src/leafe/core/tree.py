"""One task's tree: episodes go in; paths, branches and counts come out.

The tree checks what it is given: a parent comes before its child, steps count up by one along a
path, ids are unique. Everything else (paths, branches, solved) is derived from the turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from leafe.core.types import Branch, Episode, ImprovementRule, Kind, Stop, Task, Turn


class Tree:
    """The episodes of one task, in the order of their index.

    Iterating gives every turn in the order in which it was added; `tree[turn_id]` is a turn,
    `turn_id in tree` says whether there is one, and `len` counts the turns.

    Args:
        task: The task.
        episodes: What `add` is called with, in order.
    """

    def __init__(self, task: Task, episodes: Iterable[Episode] = ()) -> None:
        self.task = task
        self.episodes: list[Episode] = []
        self._turns: dict[str, Turn] = {}
        self._episode_of: dict[str, int] = {}
        self._later: dict[int, list[Turn]] = {}
        """By rollout, the reflections on it that stand in records of their own."""
        self._reading: dict[str, list[Turn]] = {}
        """By act turn, the usable reflections that read up to it."""
        for episode in episodes:
            self.add(episode)

    def __len__(self) -> int:
        return len(self._turns)

    def __contains__(self, turn_id: str) -> bool:
        return turn_id in self._turns

    def __iter__(self) -> Iterator[Turn]:
        return iter(self._turns.values())

    def __getitem__(self, turn_id: str) -> Turn:
        return self._turns[turn_id]

    def add(self, episode: Episode) -> None:
        """Append an episode.

        Args:
            episode: Of this task, with the next index.

        Raises:
            ValueError: It does not fit the tree (a bug of leafe, or a damaged journal). Nothing of
                it is added.
        """
        named = f"episode {episode.index} of {self.task.id!r}"
        if episode.task_id != self.task.id:
            raise ValueError(
                f"episode of task {episode.task_id!r} given to the tree of {self.task.id!r}"
            )
        if episode.index != len(self.episodes):
            raise ValueError(
                f"task {self.task.id!r}: episode {episode.index} comes where "
                f"{len(self.episodes)} is due"
            )
        if episode.start is not None and episode.start not in self._turns:
            raise ValueError(f"{named} starts after unknown turn {episode.start!r}")
        if episode.experience is not None and episode.experience not in self._turns:
            raise ValueError(f"{named} follows unknown reflection {episode.experience!r}")
        new = self._checked(episode)
        self._turns |= new
        self._episode_of |= dict.fromkeys(new, episode.index)
        if episode.looks_back and episode.start is not None:
            self._later.setdefault(self._episode_of[episode.start], []).extend(episode.turns)
        for turn in episode.turns:
            if turn.kind is Kind.reflect and turn.valid and turn.parent is not None:
                self._reading.setdefault(turn.parent, []).append(turn)
        self.episodes.append(episode)

    def _checked(self, episode: Episode) -> dict[str, Turn]:
        """The episode's turns by id. ValueError where one does not follow the turn before it."""
        new: dict[str, Turn] = {}
        last = episode.start
        step = self._turns[last].step + 1 if last is not None else 0
        for turn in episode.turns:
            if turn.id in self._turns or turn.id in new:
                raise ValueError(f"turn {turn.id!r} is there already")
            if turn.task_id != self.task.id or turn.parent != last or turn.step != step:
                raise ValueError(f"turn {turn.id!r} does not follow {last!r} at step {step}")
            if turn.kind is Kind.act:
                last, step = turn.id, step + 1
            elif (
                turn.kind is Kind.reflect
                and turn.valid
                and (turn.target is None or not 0 <= turn.target < turn.step)
            ):
                raise ValueError(
                    f"reflection {turn.id!r} names step {turn.target}, outside 0..{turn.step - 1}"
                )
            new[turn.id] = turn
        return new

    def episode_of(self, turn_id: str) -> Episode:
        """The episode whose record holds this turn."""
        return self.episodes[self._episode_of[turn_id]]

    def rollout_of(self, turn_id: str) -> Episode:
        """The rollout that this turn belongs to: the episode whose record holds it or, where that
        record only looks back on an earlier rollout (`Episode.looks_back`), the earlier one."""
        holder = self.episode_of(turn_id)
        return self.episode_of(holder.start) if holder.looks_back and holder.start else holder

    @property
    def rollouts(self) -> list[Episode]:
        """The episodes without the records that only add reflections to an earlier one."""
        return [e for e in self.episodes if not e.looks_back]

    def turns_of(self, rollout: Episode) -> list[Turn]:
        """The turns of a rollout's record, and the reflections that were made on it later."""
        return [*rollout.turns, *self._later.get(rollout.index, ())]

    def path(self, turn_id: str | None) -> list[Turn]:
        """The act turns from the root to a turn, that turn included; [] for None. A reflection's
        path is the history that it read."""
        out: list[Turn] = []
        while turn_id is not None:
            turn = self._turns[turn_id]
            if turn.kind is Kind.act:
                out.append(turn)
            turn_id = turn.parent
        out.reverse()
        return out

    def trajectory(self, episode: Episode) -> list[Turn]:
        """All act turns of an episode from the reset on, shared ones included."""
        return self.path(episode.start) + list(episode.acts)

    @property
    def first_observation(self) -> str:
        """o_0 of the first episode that got one."""
        return next((e.first_observation for e in self.episodes if e.first_observation), "")

    @property
    def solved(self) -> bool:
        """Whether some episode succeeded."""
        return any(e.success for e in self.episodes)

    @property
    def reflections(self) -> list[Turn]:
        """Every reflection, usable or not, in the order in which they were made."""
        return [t for e in self.episodes for t in e.turns if t.kind is Kind.reflect]

    def reflections_on(self, turns: Iterable[Turn]) -> Iterator[Turn]:
        """The usable reflections that read up to one of these actions, in the actions' order,
        whichever record they stand in."""
        for turn in turns:
            yield from self._reading.get(turn.id, ())

    def blamed(self, trajectory: Iterable[Turn]) -> int | None:
        """The earliest step of a trajectory that some reflection on it, or on its beginning,
        blames; None where there is none."""
        blamed = (t.target for t in self.reflections_on(trajectory))
        return min((step for step in blamed if step is not None), default=None)

    def successes(self) -> list[Episode]:
        """The episodes that succeeded, in order."""
        return [e for e in self.episodes if e.success]

    def branches(self, rule: ImprovementRule = "progress") -> list[Branch]:
        """The branch events (docs/method.md, Stage 1), in the order of the episodes.

        Args:
            rule: Which branches without a success count as improved.

        Returns:
            One for each branch that was reproduced and has a revised action.
        """
        winning = {t.id for e in self.successes() for t in self.trajectory(e)}
        out: list[Branch] = []
        for episode in self.episodes:
            if episode.experience is None or episode.stop is Stop.diverged or not episode.acts:
                continue
            reflection = self._turns[episode.experience]
            revised = episode.acts[0]
            before = self.rollout_of(reflection.id)
            out.append(
                Branch(
                    task_id=self.task.id,
                    turn_before=episode.start,
                    original=self.path(reflection.id)[revised.step],
                    revised=revised,
                    reflection=reflection,
                    outcome_before=before,
                    outcome_after=episode,
                    improved=self._improved(before, episode, reflection, rule),
                    on_success_path=revised.id in winning,
                )
            )
        return out

    def _improved(
        self, before: Episode, after: Episode, reflection: Turn, rule: ImprovementRule
    ) -> bool:
        if after.success or before.success:
            return after.success
        if rule == "progress":
            old, new = (
                [t.progress for t in self.trajectory(each) if t.progress is not None]
                for each in (before, after)
            )
            if old or new:
                return max(new, default=0.0) > max(old, default=0.0)
        blamed = next((t.target for t in self.reflections_on(after.acts)), None)
        assert reflection.target is not None
        return blamed is not None and blamed > reflection.target
