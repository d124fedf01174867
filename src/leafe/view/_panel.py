"""One turn in full: what was asked, what was said, what came of it, what was changed by the
reflection, and what of it is learnt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from leafe.core import ChatTokens, Episode, Kind, Message, Tree, Turn
from leafe.prompts import Prompts, history_before
from leafe.view._diff import difference
from leafe.view._run import Had
from leafe.view._text import Shown, plain, show
from leafe.view._training import LONG, Learnt, Masked, Token, masked, tokens

_TEXT = 12_000
_PROMPT = 40_000
_MESSAGE = 9_000
_COMPARED = 5_000
_MOST_TOKENS = 300
_MOST_CHANGES = 4


@dataclass(frozen=True, slots=True)
class Block:
    """A text under a title."""

    title: str
    text: Shown
    raw: str
    """Where the whole text is."""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A reflection between the action before and the revised one."""

    reflection: Turn
    note: Shown
    original: Turn
    before: Episode
    revised: Turn | None
    """None: no branch followed it."""
    after: Episode | None
    left: list[tuple[str, Shown]]
    """The action before in pieces: (`same` or `gone`, text)."""
    right: list[tuple[str, Shown]]
    compared: bool
    improved: bool
    target: int


@dataclass(frozen=True, slots=True)
class Lesson:
    """A sample of the turn with its mask."""

    learnt: Learnt
    mask: Masked
    why: str
    context: Shown | None
    target: Shown | None
    note: str
    taken_out: bool
    """An experience stood in the prompt, and does not stand in the sample's."""


@dataclass(slots=True)
class Panel:
    title: str
    turn: Turn
    episode: Episode
    blocks: list[Block] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    prompt: list[tuple[str, Shown]] = field(default_factory=list)
    """The end of the prompt: (role, text)."""
    earlier: int = 0
    """Messages before those."""
    prompt_note: str = ""
    prompt_raw: str = ""
    pieces: Sequence[Token] = ()
    """The sampled tokens, where a tokenizer is at hand."""
    ids: Sequence[int] = ()
    pieces_note: str = ""
    lessons: list[Lesson] = field(default_factory=list)


def panel(
    tree: Tree,
    turn: Turn,
    prompts: Had[Prompts],
    chat: Had[ChatTokens],
    taught: Sequence[Learnt],
    link: Callable[[Turn], str],
    raw: str,
) -> Panel:
    """The turn's panel. `link` gives a turn's address, `raw` is where its whole texts are."""
    episode = tree.rollout_of(turn.id)
    out = Panel(_title(turn, episode), turn, episode)
    out.blocks = _blocks(tree, turn, raw)
    out.facts = _facts(turn, episode)
    out.changes = _changes(tree, turn)
    out.prompt_raw = f"{raw}&what=prompt"
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
        out.pieces = (
            tokens(chat.value, turn.tokens[:_MOST_TOKENS]) if chat.value is not None else ()
        )
        more = (
            f" The first {_MOST_TOKENS} of {len(turn.tokens)}."
            if len(turn.tokens) > _MOST_TOKENS
            else ""
        )
        out.pieces_note = (chat.why if chat.value is None else "") + more
    for each in taught:
        mask, why = masked(each.sample, chat.value)
        context = show(mask.context, 2000) if isinstance(mask.context, str) else None
        target = show(mask.target, 8000) if isinstance(mask.target, str) else None
        taken_out = each.sample.part == "counterfactual" or (
            each.sample.part == "rehearsal" and turn.experience is not None
        )
        out.lessons.append(
            Lesson(each, mask, why, context, target, plain(each.sample.note, 300), taken_out)
        )
    return out


def whole(tree: Tree, turn: Turn, what: str, prompts: Had[Prompts]) -> str | None:
    """One of the turn's texts, uncut; None where there is none of that name."""
    if what == "prompt":
        messages = _messages(tree, turn, prompts)
        return (
            messages.why
            if messages.value is None
            else "\n\n".join(f"--- {m.role} ---\n{m.content}" for m in messages.value)
        )
    if what == "instruction":
        return tree.task.instruction
    if what == "first":
        return tree.episode_of(
            tree.path(turn.id)[0].id if tree.path(turn.id) else turn.id
        ).first_observation
    texts = {
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
        return Block(title, show(text, _TEXT), f"{raw}&what={what}", kind)

    out = []
    if turn.kind is Kind.act:
        before = (
            tree[turn.parent].observation
            if turn.parent is not None
            else tree.episode_of(turn.id).first_observation
        )
        if before:
            what = "first" if turn.parent is None else ""
            seen = show(before, _TEXT)
            out.append(Block("What it saw", seen, f"{raw}&what={what}" if what else "", "before"))
        if turn.thought:
            out.append(block("Thought", turn.thought, "thought"))
        out.append(block("Action", turn.action, "action", "action"))
        if turn.action_text.strip() != turn.action.strip():
            out.append(block("Answer as written", turn.action_text, "said"))
        out.append(
            block(
                "What the environment answered",
                turn.observation,
                "observation",
                "answer" if turn.valid else "answer refused",
            )
        )
        return out
    out.append(block("Answer as written", turn.action_text, "said"))
    if turn.note:
        out.append(
            block(
                "Experience" if turn.kind is Kind.reflect else "What was read out of it",
                turn.note,
                "note",
                "action",
            )
        )
    if turn.observation:
        out.append(
            block(
                "Why it cannot be used" if not turn.valid else "Observation",
                turn.observation,
                "observation",
                "answer refused",
            )
        )
    return out


def _facts(turn: Turn, episode: Episode) -> list[tuple[str, str]]:
    out: list[tuple[str, str]] = [("policy", turn.policy or "–")]
    if turn.kind is Kind.act:
        out.append(("valid", "yes" if turn.valid else "refused by the environment"))
        out.append(("reward", f"{turn.reward:g}"))
        if turn.progress is not None:
            out.append(("progress", f"{turn.progress:g}"))
    elif turn.kind is Kind.reflect:
        out.append(("usable", f"yes, back to step {turn.target}" if turn.valid else "no"))
    used = turn.usage
    out.append(("prompt tokens", f"{used.prompt:,} ({used.cached:,} cached)"))
    out.append(("generated tokens", f"{used.generated:,}"))
    if turn.logprob is not None:
        n = len(turn.tokens) if turn.tokens else used.generated
        out.append(
            (
                "log-probability",
                f"{turn.logprob:.4g}" + (f" ({turn.logprob / n:.4g} a token)" if n else ""),
            )
        )
    if turn.count > 1 or episode.count > 1:
        out.append(("samples", f"{turn.count:,} took it"))
    out += [("seconds", f"{turn.seconds:.3g}"), ("id", turn.id)]
    return [(name, plain(value, 300)) for name, value in out]


def _changes(tree: Tree, turn: Turn) -> list[Change]:
    """The rollbacks that the turn has a part in: as the action before, as the reflection, or as the
    revised action."""
    improved = {branch.revised.id: branch.improved for branch in tree.branches()}
    out = []
    for reflection in tree.reflections:
        if not reflection.valid or reflection.target is None:
            continue
        original = tree.path(reflection.id)[reflection.target]
        followed: list[Episode | None] = [e for e in tree.episodes if e.experience == reflection.id]
        for after in followed or [None]:
            revised = after.acts[0] if after is not None and after.acts else None
            if turn.id not in (reflection.id, original.id, revised.id if revised else None):
                continue
            before = tree.rollout_of(reflection.id)
            pieces = (
                difference(original.action_text, revised.action_text)
                if revised is not None
                else None
            )
            left, right = (
                pieces
                if pieces is not None
                else (
                    [("same", original.action_text)],
                    [("same", revised.action_text if revised else "")],
                )
            )
            better = improved.get(revised.id, False) if revised else False
            change = (
                reflection,
                show(reflection.note, _COMPARED),
                original,
                before,
                revised,
                after,
                _cut(left),
                _cut(right),
                pieces is not None,
                better,
            )
            out.append(Change(*change, reflection.target))
    return out[:_MOST_CHANGES]


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


def _messages(tree: Tree, turn: Turn, prompts: Had[Prompts]) -> Had[tuple[Message, ...]]:
    """The prompt in answer to which the turn was said."""
    if prompts.value is None:
        return Had(None, prompts.why)
    if turn.kind is Kind.aside:
        return Had(
            None,
            (
                "The request of an aside is put together by the baseline that made it, and "
                "does not stand in the tree."
            ),
        )
    history = history_before(tree, turn, with_experience=True)
    if turn.kind is Kind.act:
        return Had(prompts.value.act(history))
    return (
        Had(prompts.value.reflect(history))
        if history.turns
        else Had(None, "There is no action before it.")
    )


def _counted(messages: Sequence[Message], turn: Turn, chat: ChatTokens | None) -> str:
    """Whether the prompt that was put together again has the length that the engine counted."""
    if chat is None or not turn.usage.prompt or sum(len(m.content) for m in messages) > LONG:
        return ""
    try:
        here = len(chat.prompt(messages))
    except Exception:  # a template that refuses is said where it matters, in training
        return ""
    if here == turn.usage.prompt:
        return f"{here:,} tokens, as the engine counted."
    return f"{here:,} tokens when put together here; the engine counted {turn.usage.prompt:,}."
