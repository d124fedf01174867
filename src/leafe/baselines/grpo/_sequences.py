"""An episode as one token sequence: the prompt, then actions and observations in turn, with a mask
that is 1 on what the policy sampled.

The ids are the engine's own: each turn's prompt is tokenised as it was when the policy read it, and
the sampled ids stand in it as they are. So the training sees exactly what was read and sampled.
"""

from __future__ import annotations

from dataclasses import dataclass

from leafe.core import LOST, ChatTokens, Episode, Tree, UserError
from leafe.prompts import History, PromptCache, Prompts


@dataclass(frozen=True, slots=True)
class RolloutSequence:
    """One rollout for the trainer."""

    prompt: tuple[int, ...]
    """Token ids of the first prompt."""
    completion: tuple[int, ...]
    """Token ids from the first action to the last; the observation after that was read by
    nobody."""
    mask: tuple[int, ...]
    """1: sampled by the policy, 0: not; as long as `completion`."""
    reward: float | None
    """None: the rollout was lost."""
    unknown: int = 0
    """Turns whose sampled ids the engine could not give (a stop string ended them within a token):
    they carry no loss."""


def rollout_sequence(
    tree: Tree, episode: Episode, prompts: Prompts, chat: ChatTokens, reward: str = "success"
) -> RolloutSequence:
    """The whole trajectory of an episode.

    Args:
        tree: The task's tree.
        episode: One of its episodes.
        prompts: The wording that it was played with.
        chat: The tokenizer of the policy.
        reward: As `GrpoConfig.reward`.

    Raises:
        UserError: A turn's prompt does not begin with the prompt and the action before it.
    """
    turns = tree.trajectory(episode)
    cache = PromptCache()

    def prompt_after(steps: int) -> tuple[int, ...]:
        history = History(
            tree.task,
            episode.first_observation,
            tuple(turns[:steps]),
            preamble=episode.preamble,
        )
        return chat.prompt(prompts.act(history, cache))

    ids = prompt_after(0)
    first, unknown = len(ids), 0
    mask: list[int] = []
    for i, turn in enumerate(turns):
        prompt = prompt_after(i)
        if prompt[: len(ids)] != ids:
            raise UserError(
                f"The prompt of turn {turn.id} does not begin with the prompt and the action "
                "before it, so the episode is not one sequence: GRPO needs "
                'history = "full".'
            )
        mask += [0] * (len(prompt) - len(ids))
        answer = turn.tokens
        if answer is None:  # the answer's ids as they stand in the next prompt
            unknown += 1
            rest = prompt_after(i + 1)[len(prompt) :]
            answer = rest[: rest.index(chat.end_of_turn)]
        mask += [int(turn.tokens is not None)] * len(answer)
        ids = prompt + answer
    return RolloutSequence(
        ids[:first], ids[first:], tuple(mask), _reward(tree, episode, reward), unknown
    )


def empty_sequence(pad: int) -> RolloutSequence:
    """The place holder of a rollout that is missing."""
    return RolloutSequence((pad,), (pad,), (0,), None)


def _reward(tree: Tree, episode: Episode, kind: str) -> float | None:
    if episode.stop in LOST:
        return None
    if kind == "success":
        return float(episode.success)
    return float(sum(turn.reward for turn in tree.trajectory(episode)))
