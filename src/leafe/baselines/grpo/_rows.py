"""An episode as one sequence: the prompt, and after it actions and observations by turns, with a
mask that is 1 on what the policy sampled.

The ids are the engine's own: each turn's prompt is tokenised as it was when the policy read it, and
the sampled ids stand in it as they are. So what is trained
on is what was read and written, token by token.
"""

from __future__ import annotations

from dataclasses import dataclass

from leafe.core import LOST, ChatTokens, Episode, Tree, UserError
from leafe.prompts import History, PromptCache, Prompts


@dataclass(frozen=True, slots=True)
class Row:
    """One rollout for the trainer."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    """From the first action to the last; what the environment said after that was read by
    nobody."""
    mask: tuple[int, ...]
    """1: sampled by the policy, 0: not; as long as `completion`."""
    reward: float | None
    """None: lost."""
    unknown: int = 0
    """Turns whose sampled ids the engine could not give (a stop string ended them within a token):
    they carry no loss."""


def row_of(
    tree: Tree, episode: Episode, prompts: Prompts, chat: ChatTokens, reward: str = "success"
) -> Row:
    """The whole trajectory of an episode. UserError where a turn's prompt does not begin with the
    one before and its action."""
    turns = tree.trajectory(episode)
    said = PromptCache()
    ids: tuple[int, ...] = chat.prompt(
        prompts.act(History(tree.task, episode.first_observation, preamble=episode.preamble), said)
    )
    first, mask, unknown = len(ids), [], 0
    for i, turn in enumerate(turns):
        prompt = chat.prompt(
            prompts.act(
                History(
                    tree.task,
                    episode.first_observation,
                    tuple(turns[:i]),
                    preamble=episode.preamble,
                ),
                said,
            )
        )
        if prompt[: len(ids)] != ids:
            raise UserError(
                f"The prompt of turn {turn.id} does not begin with the prompt and the "
                "action before it, so the episode is not one sequence: GRPO needs "
                'history = "full".'
            )
        mask += [0] * (len(prompt) - len(ids))
        answer = turn.tokens
        if answer is None:
            unknown += 1
            after = History(
                tree.task,
                episode.first_observation,
                tuple(turns[: i + 1]),
                preamble=episode.preamble,
            )
            answer = _text_of(chat.prompt(prompts.act(after, said)), prompt, chat.end_of_turn)
        mask += [int(turn.tokens is not None)] * len(answer)
        ids = prompt + answer
    return Row(ids[:first], ids[first:], tuple(mask), _reward(tree, episode, reward), unknown)


def nothing(pad: int) -> Row:
    """What stands for a rollout that there is not."""
    return Row((pad,), (pad,), (0,), None)


def _text_of(longer: tuple[int, ...], shorter: tuple[int, ...], end: int) -> tuple[int, ...]:
    """The ids between a prompt and the next turn's message: the answer as it stood in what was read
    later."""
    rest = longer[len(shorter) :]
    return rest[: rest.index(end)]


def _reward(tree: Tree, episode: Episode, kind: str) -> float | None:
    if episode.stop in LOST:
        return None
    if kind == "success":
        return float(episode.success)
    return float(sum(turn.reward for turn in tree.trajectory(episode)))
