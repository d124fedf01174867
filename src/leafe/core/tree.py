"""One task's tree: episodes go in, paths, branches and counts come out.

The tree checks what it is given: a parent must be there before its child, steps count up by one
along a path, ids are
unique. What it answers (paths, branches, solved) is computed from the turns, never stored beside
them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from leafe.core.types import Branch, Episode, ImprovementRule, Kind, Stop, Task, Turn


class Tree:
    """The episodes of one task, in order of their index."""

    def __init__(self, task: Task, episodes: Iterable[Episode] = ()) -> None:
        self.task = task
        self.episodes: list[Episode] = []
        self._turns: dict[str, Turn] = {}
        self._episode_of: dict[str, int] = {}
        self._later: dict[
            int, list[Turn]
        ] = {}  # reflections in records of their own, by the rollout that they read
        self._read_to: dict[
            str, list[Turn]
        ] = {}  # usable reflections by the last action that they read
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
        """Append an episode; ValueError where it does not fit the tree (our own bug, or a damaged
        journal)."""
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
            raise ValueError(
                f"episode {episode.index} of {self.task.id!r} starts after unknown turn "
                f"{episode.start!r}"
            )
        if episode.experience is not None and episode.experience not in self._turns:
            raise ValueError(
                f"episode {episode.index} of {self.task.id!r} follows unknown reflection "
                f"{episode.experience!r}"
            )
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
                and not (turn.target is not None and 0 <= turn.target < turn.step)
            ):
                raise ValueError(
                    f"reflection {turn.id!r} names step {turn.target}, outside 0..{turn.step - 1}"
                )
            new[turn.id] = turn
        self._turns |= new
        self._episode_of |= dict.fromkeys(new, episode.index)
        if episode.looks_back and episode.start is not None:
            self._later.setdefault(self._episode_of[episode.start], []).extend(episode.turns)
        for turn in episode.turns:
            if turn.kind is Kind.reflect and turn.valid and turn.parent is not None:
                self._read_to.setdefault(turn.parent, []).append(turn)
        self.episodes.append(episode)

    def episode_of(self, turn_id: str) -> Episode:
        """The episode whose record holds this turn."""
        return self.episodes[self._episode_of[turn_id]]

    def rollout_of(self, turn_id: str) -> Episode:
        """The rollout that this turn belongs to.

        That is the episode whose record holds the turn or, where the record only looks back on an
        earlier rollout (`Episode.looks_back`), the earlier one.
        """
        holder = self.episode_of(turn_id)
        return self.episode_of(holder.start) if holder.looks_back and holder.start else holder

    @property
    def rollouts(self) -> list[Episode]:
        """The episodes without the records that only add reflections to an earlier one."""
        return [e for e in self.episodes if not e.looks_back]

    def turns_of(self, rollout: Episode) -> list[Turn]:
        """The turns of its record, and the reflections that were made on it later."""
        return [*rollout.turns, *self._later.get(rollout.index, ())]

    def path(self, turn_id: str | None) -> list[Turn]:
        """The act turns from the root to this turn, which is the last; [] for None. A reflection's
        path is what it read."""
        out: list[Turn] = []
        while turn_id is not None:
            turn = self._turns[turn_id]
            if turn.kind is Kind.act:
                out.append(turn)
            turn_id = turn.parent
        out.reverse()
        return out

    def trajectory(self, episode: Episode) -> list[Turn]:
        """All act turns of an episode from the reset on, those that it shares with its parent
        included."""
        return self.path(episode.start) + list(episode.acts)

    @property
    def first_observation(self) -> str:
        """o_0 of the first episode that got one."""
        return next((e.first_observation for e in self.episodes if e.first_observation), "")

    @property
    def solved(self) -> bool:
        return any(e.success for e in self.episodes)

    @property
    def reflections(self) -> list[Turn]:
        """Every reflection, usable or not, in the order in which they were made."""
        return [t for e in self.episodes for t in e.turns if t.kind is Kind.reflect]

    def reflections_on(self, turns: Iterable[Turn]) -> Iterator[Turn]:
        """The usable reflections that read up to one of these actions, in the actions' order.

        Whose record they stand in does not matter: the episode's own, or one that was made later to
        look back on it.
        """
        for turn in turns:
            yield from self._read_to.get(turn.id, ())

    def blamed(self, trajectory: Iterable[Turn]) -> int | None:
        """The earliest step of a trajectory that a reflection on it blames; None where there is
        none.

        Whatever read the trajectory's beginning counts, so that what was blamed on the way is
        blamed in every episode that
        went on from there.
        """
        return min(
            (t.target for t in self.reflections_on(trajectory) if t.target is not None),
            default=None,
        )

    def successes(self) -> list[Episode]:
        return [e for e in self.episodes if e.success]

    def branches(self, rule: ImprovementRule = "progress") -> list[Branch]:
        """The branch events, in order; `rule` says which of them improved. Diverged branches and
        those without a revised action give none."""
        winning = {t.id for e in self.successes() for t in self.trajectory(e)}
        out: list[Branch] = []
        for episode in self.episodes:
            if episode.experience is None or episode.stop is Stop.diverged or not episode.acts:
                continue
            reflection = self._turns[episode.experience]
            revised = episode.acts[0]
            read = self.path(reflection.id)
            before = self.rollout_of(reflection.id)
            out.append(
                Branch(
                    task_id=self.task.id,
                    turn_before=episode.start,
                    original=read[revised.step],
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
            reached_before = [t.progress for t in self.trajectory(before) if t.progress is not None]
            reached_after = [t.progress for t in self.trajectory(after) if t.progress is not None]
            if reached_before or reached_after:
                return max(reached_after, default=0.0) > max(reached_before, default=0.0)
        blamed = next((t.target for t in self.reflections_on(after.acts)), None)
        assert reflection.target is not None
        return blamed is not None and blamed > reflection.target
