"""One turn in full: its prompt, texts and facts, what a rollback changed, what is trained on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from leafe.core import ChatTokens, Episode, Kind, Message, Tree, Turn
from leafe.prompts import Prompts, history_before
from leafe.view._diff import Piece, difference
from leafe.view._run import Available
from leafe.view._text import Shown, one_line, show
from leafe.view._training import LONG, LossMask, Token, TrainingSample, loss_mask, tokens

_TEXT = 12_000
_PROMPT = 40_000
_MESSAGE = 9_000
_COMPARED = 5_000
_MOST_TOKENS = 300
_MOST_CHANGES = 4


@dataclass(frozen=True, slots=True)
class Block:
    """A text under a title; `raw` is the address of the whole text, `kind` its CSS class."""

    title: str
    text: Shown
    raw: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A reflection between the action before and the revised one.

    Attributes:
        reflection, note: The reflection, and its experience.
        original, before: The action before, and its episode.
        revised, after: The revised action, and its episode; None where no branch followed.
        left, right: Both actions in pieces: (`same`, `gone` or `new`, text).
        compared: Whether the texts were short enough to be compared.
        improved: Whether the branch is better than its parent.
        target: The rollback step.
    """

    reflection: Turn
    note: Shown
    original: Turn
    before: Episode
    revised: Turn | None
    after: Episode | None
    left: list[tuple[str, Shown]]
    right: list[tuple[str, Shown]]
    compared: bool
    improved: bool
    target: int


@dataclass(frozen=True, slots=True)
class ShownSample:
    """A training sample of the turn with its mask; `context` and `target` where the mask is by
    text. `taken_out`: an experience stood in the turn's prompt and not in the sample's."""

    item: TrainingSample
    mask: LossMask
    context: Shown | None
    target: Shown | None
    note: str
    taken_out: bool


@dataclass(slots=True)
class Panel:
    """What the page shows of a turn.

    Attributes:
        prompt: The end of the prompt as (role, text), after `earlier` more messages.
        prompt_raw: The address of the whole prompt.
        pieces: The sampled tokens, where there is a tokenizer; `ids` are their ids.
        samples: What the chosen arm trains on.
    """

    title: str
    blocks: list[Block]
    facts: list[tuple[str, str]]
    changes: list[Change]
    samples: list[ShownSample]
    prompt_raw: str
    prompt: list[tuple[str, Shown]] = field(default_factory=list)
    earlier: int = 0
    prompt_note: str = ""
    ids: Sequence[int] = ()
    pieces: Sequence[Token] = ()
    pieces_note: str = ""


def panel(
    tree: Tree,
    turn: Turn,
    prompts: Available[Prompts],
    chat: Available[ChatTokens],
    samples: Sequence[TrainingSample],
    link: Callable[[Turn], str],
    raw: str,
) -> Panel:
    """The turn's panel. `link` gives a turn's address, `raw` is that of the turn's whole texts."""
    episode = tree.rollout_of(turn.id)
    out = Panel(
        _title(turn, episode),
        _blocks(tree, turn, raw),
        _facts(turn, episode),
        list(islice(_changes(tree, turn), _MOST_CHANGES)),
        [_sample(each, turn, chat.value) for each in samples],
        f"{raw}&what=prompt",
    )
    messages = _messages(tree, turn, prompts)
    if messages.value is None:
        out.prompt_note = messages.why
    else:
        left = _PROMPT
        for message in reversed(messages.value):
            if left < 200:
                break
            shown = show(message.content, min(left, _MESSAGE))
            left -= len(shown.html.encode())
            out.prompt.insert(0, (message.role, shown))
        out.earlier = len(messages.value) - len(out.prompt)
        out.prompt_note = _counted(messages.value, turn, chat.value)
    if turn.tokens is not None:
        out.ids = turn.tokens[:_MOST_TOKENS]
        if chat.value is not None:
            out.pieces = tokens(chat.value, turn.tokens[:_MOST_TOKENS])
        cut = len(turn.tokens) > _MOST_TOKENS
        more = f" The first {_MOST_TOKENS} of {len(turn.tokens)}." if cut else ""
        out.pieces_note = (chat.why if chat.value is None else "") + more
    return out


def _sample(each: TrainingSample, turn: Turn, chat: ChatTokens | None) -> ShownSample:
    sample, mask = each.sample, loss_mask(each.sample, chat)
    return ShownSample(
        each,
        mask,
        show(mask.context, 2000) if isinstance(mask.context, str) else None,
        show(mask.target, 8000) if isinstance(mask.target, str) else None,
        one_line(sample.note, 300),
        sample.part == "counterfactual"
        or (sample.part == "rehearsal" and turn.experience is not None),
    )


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


def _blocks(tree: Tree, turn: Turn, raw: str) -> list[Block]:
    def block(title: str, text: str, what: str, kind: str = "") -> Block:
        return Block(title, show(text, _TEXT), f"{raw}&what={what}" if what else "", kind)

    answer = block("Answer as written", turn.action_text, "said")
    if turn.kind is not Kind.act:
        read = "Experience" if turn.kind is Kind.reflect else "What was read out of it"
        why = "Observation" if turn.valid else "Why it cannot be used"
        return [
            answer,
            *([block(read, turn.note, "note", "action")] if turn.note else []),
            *(
                [block(why, turn.observation, "observation", "answer refused")]
                if turn.observation
                else []
            ),
        ]
    out = []
    if turn.parent is not None:
        out.append(block("What it saw", tree[turn.parent].observation, "", "before"))
    else:
        first = tree.episode_of(turn.id).first_observation
        out.append(block("What it saw", first, "first", "before"))
    if not out[0].text.length:
        out.clear()
    if turn.thought:
        out.append(block("Thought", turn.thought, "thought"))
    out.append(block("Action", turn.action, "action", "action"))
    if turn.action_text.strip() != turn.action.strip():
        out.append(answer)
    kind = "answer" if turn.valid else "answer refused"
    answered = "What the environment answered"
    return [*out, block(answered, turn.observation, "observation", kind)]


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


def _changes(tree: Tree, turn: Turn) -> Iterator[Change]:
    """The rollbacks that the turn is a part of: as the action before, as the reflection, or as the
    revised action."""
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
            yield Change(
                reflection,
                show(reflection.note, _COMPARED),
                original,
                tree.rollout_of(reflection.id),
                revised,
                after,
                _cut(left),
                _cut(right),
                pieces is not None,
                revised is not None and improved.get(revised.id, False),
                reflection.target,
            )


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
