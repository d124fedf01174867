"""One turn in full: its prompt, texts and facts, what a rollback changed, what is trained on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from leafe.core import ChatTokens, Episode, Kind, Message, Tree, Turn
from leafe.prompts import Prompts, history_before
from leafe.view._diff import Piece, difference
from leafe.view._run import Available
from leafe.view._text import Shown, one_line, show
from leafe.view._training import LONG, TrainingSample, loss_mask, tokens

_TEXT = 12_000
_PROMPT = 40_000
_MESSAGE = 9_000
_COMPARED = 5_000
_MOST_TOKENS = 300
_MOST_CHANGES = 4


def panel(
    tree: Tree,
    turn: Turn,
    prompts: Available[Prompts],
    chat: Available[ChatTokens],
    samples: Sequence[TrainingSample],
    raw: str,
) -> dict[str, Any]:
    """What the page shows of a turn.

    Args:
        tree: The task's tree.
        turn: The turn.
        prompts: The run's prompts, as the turn's stage used them.
        chat: The tokenizer.
        samples: The turn's samples in the chosen arm's training set.
        raw: The address of the turn's whole texts.

    Returns:
        `title`, `blocks`, `facts`, `changes`, `samples`; `prompt` (the end of it as (role, text),
        after `earlier` more messages) with `prompt_note` and `prompt_raw`; `ids`, `pieces` (the
        sampled tokens, where there is a tokenizer) and `pieces_note`.
    """
    episode = tree.rollout_of(turn.id)
    messages = _messages(tree, turn, prompts)
    shown = _prompt_end(messages.value or ())
    ids = (turn.tokens or ())[:_MOST_TOKENS]
    cut = turn.tokens is not None and len(turn.tokens) > _MOST_TOKENS
    more = f" The first {_MOST_TOKENS} of {len(turn.tokens or ())}." if cut else ""
    return {
        "title": _title(turn, episode),
        "blocks": _blocks(tree, turn, raw),
        "facts": _facts(turn, episode),
        "changes": list(islice(_changes(tree, turn), _MOST_CHANGES)),
        "samples": [_sample(each, turn, chat.value) for each in samples],
        "prompt": shown,
        "earlier": len(messages.value or ()) - len(shown),
        "prompt_note": _counted(messages.value, turn, chat.value)
        if messages.value is not None
        else messages.why,
        "prompt_raw": f"{raw}&what=prompt",
        "ids": ids,
        "pieces": tokens(chat.value, ids) if chat.value is not None else (),
        "pieces_note": (chat.why if chat.value is None else "") + more,
    }


def _prompt_end(messages: Sequence[Message]) -> list[tuple[str, Shown]]:
    """The last messages of a prompt, about `_PROMPT` bytes of HTML."""
    out: list[tuple[str, Shown]] = []
    left = _PROMPT
    for message in reversed(messages):
        if left < 200:
            break
        shown = show(message.content, min(left, _MESSAGE))
        left -= len(shown.html.encode())
        out.insert(0, (message.role, shown))
    return out


def _sample(each: TrainingSample, turn: Turn, chat: ChatTokens | None) -> dict[str, Any]:
    """A training sample with its mask; `context` and `target` are texts where the mask is by text.
    `taken_out`: an experience stood in the turn's prompt and not in the sample's."""
    part, mask = each.sample.part, loss_mask(each.sample, chat)
    return {
        "item": each,
        "mask": mask,
        "context": show(mask.context, 2000) if isinstance(mask.context, str) else None,
        "target": show(mask.target, 8000) if isinstance(mask.target, str) else None,
        "note": one_line(each.sample.note, 300),
        "taken_out": part == "counterfactual"
        or (part == "rehearsal" and turn.experience is not None),
    }


def whole(tree: Tree, turn: Turn, what: str, prompts: Available[Prompts]) -> str | None:
    """One of the turn's texts, uncut; None where there is none of that name."""
    if what == "prompt":
        messages = _messages(tree, turn, prompts)
        if messages.value is None:
            return messages.why
        return "\n\n".join(f"--- {m.role} ---\n{m.content}" for m in messages.value)
    first = next(iter(tree.path(turn.id)), turn)
    texts = {
        "instruction": tree.task.instruction,
        "first": tree.episode_of(first.id).first_observation,
        "said": turn.action_text,
        "action": turn.action,
        "thought": turn.thought,
        "observation": turn.observation,
        "note": turn.note,
    }
    return texts.get(what)


def _title(turn: Turn, episode: Episode) -> str:
    if turn.kind is Kind.act:
        return f"Step {turn.step} of episode #{episode.index}"
    name = "Reflection" if turn.kind is Kind.reflect else (turn.action or "aside").capitalize()
    return f"{name} after {turn.step} action{'s' * (turn.step != 1)} of episode #{episode.index}"


def _blocks(tree: Tree, turn: Turn, raw: str) -> list[dict[str, Any]]:
    """The turn's texts under titles: `title`, `text`, `kind` (a CSS class), and `raw`, the address
    of the whole text."""

    def block(title: str, text: str, what: str, kind: str = "") -> list[dict[str, Any]]:
        address = f"{raw}&what={what}" if what else ""
        return [{"title": title, "text": show(text, _TEXT), "raw": address, "kind": kind}]

    answer = block("Answer as written", turn.action_text, "said")
    if turn.kind is not Kind.act:
        read = "Experience" if turn.kind is Kind.reflect else "Parsed note"
        why = "Observation" if turn.valid else "Why it cannot be used"
        note = block(read, turn.note, "note", "action") if turn.note else []
        reason = block(why, turn.observation, "observation", "answer refused")
        return [*answer, *note, *(reason if turn.observation else [])]
    before, what = tree.episode_of(turn.id).first_observation, "first"
    if turn.parent is not None:
        before, what = tree[turn.parent].observation, ""
    return [
        *(block("Observation before", before, what, "before") if before else []),
        *(block("Thought", turn.thought, "thought") if turn.thought else []),
        *block("Action", turn.action, "action", "action"),
        *(answer if turn.action_text.strip() != turn.action.strip() else []),
        *block(
            "The environment's answer",
            turn.observation,
            "observation",
            "answer" if turn.valid else "answer refused",
        ),
    ]


def _facts(turn: Turn, episode: Episode) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = [("policy", turn.policy or "–")]
    if turn.kind is Kind.act:
        valid = "yes" if turn.valid else "refused by the environment"
        out += [("valid", valid), ("reward", f"{turn.reward:g}")]
        if turn.progress is not None:
            out.append(("progress", f"{turn.progress:g}"))
    elif turn.kind is Kind.reflect:
        out.append(("usable", f"yes, back to step {turn.target}" if turn.valid else "no"))
    used = turn.usage
    out += [
        ("prompt tokens", f"{used.prompt:,} ({used.cached:,} cached)"),
        ("generated tokens", f"{used.generated:,}"),
    ]
    if turn.logprob is not None:
        n = len(turn.tokens) if turn.tokens else used.generated
        each = f" ({turn.logprob / n:.4g} a token)" if n else ""
        out.append(("log-probability", f"{turn.logprob:.4g}{each}"))
    if turn.count > 1 or episode.count > 1:
        out.append(("samples", f"{turn.count:,} took it"))
    out += [("seconds", f"{turn.seconds:.3g}"), ("id", turn.id)]
    return [(name, one_line(value, 300)) for name, value in out]


def _changes(tree: Tree, turn: Turn) -> Iterator[dict[str, Any]]:
    """The rollbacks that the turn is a part of: as the action before, as the reflection, or as the
    revised action.

    Yields:
        `reflection` with its `note` and `target`; `original` and `before`, the action before and
        its episode; `revised` and `after`, the revised action and its episode (None where no branch
        followed); `left` and `right`, both actions in pieces; `compared`, whether they were short
        enough for that; `improved`, whether the branch is better than its parent.
    """
    improved = {branch.revised.id: branch.improved for branch in tree.branches()}
    for reflection in tree.reflections:
        if not reflection.valid or reflection.target is None:
            continue
        original = tree.path(reflection.id)[reflection.target]
        followed: list[Episode | None] = [e for e in tree.episodes if e.experience == reflection.id]
        for after in followed or [None]:
            revised = after.acts[0] if after is not None and after.acts else None
            if turn not in (reflection, original, revised):
                continue
            text = revised.action_text if revised is not None else ""
            pieces = difference(original.action_text, text) if revised is not None else None
            left, right = pieces or ([Piece("same", original.action_text)], [Piece("same", text)])
            yield {
                "reflection": reflection,
                "note": show(reflection.note, _COMPARED),
                "target": reflection.target,
                "original": original,
                "before": tree.rollout_of(reflection.id),
                "revised": revised,
                "after": after,
                "left": _cut(left),
                "right": _cut(right),
                "compared": pieces is not None,
                "improved": revised is not None and improved.get(revised.id, False),
            }


def _cut(pieces: Sequence[tuple[Any, str]]) -> list[tuple[str, Shown]]:
    out: list[tuple[str, Shown]] = []
    left = _COMPARED
    for kind, text in pieces:
        shown = show(text, left)
        out.append((kind, shown))
        left -= len(shown.html.encode()) + 20
        if left <= 0:
            break
    return out


def _messages(
    tree: Tree, turn: Turn, prompts: Available[Prompts]
) -> Available[tuple[Message, ...]]:
    """The prompt that the turn answers."""
    if prompts.value is None:
        return Available(None, prompts.why)
    if turn.kind is Kind.aside:
        return Available(
            None,
            "The request of an aside is put together by the baseline that made it, and does not "
            "stand in the tree.",
        )
    history = history_before(tree, turn, with_experience=True)
    if turn.kind is Kind.act:
        return Available(prompts.value.act(history))
    if not history.turns:
        return Available(None, "There is no action before it.")
    return Available(prompts.value.reflect(history))


def _counted(messages: Sequence[Message], turn: Turn, chat: ChatTokens | None) -> str:
    """Whether the prompt that was put together again has the length that the engine counted."""
    if chat is None or not turn.usage.prompt or sum(len(m.content) for m in messages) > LONG:
        return ""
    try:
        here = len(chat.prompt(messages))
    except Exception:  # a template that refuses is reported where it matters, in training
        return ""
    if here == turn.usage.prompt:
        return f"{here:,} tokens, as the engine counted."
    return f"{here:,} tokens when put together here; the engine counted {turn.usage.prompt:,}."
