"""Explains why a command did nothing.

It tells only what the player could see: what is closed, what is carried, what is near. Where a
hidden thing is, is never told.
"""

from __future__ import annotations

import re

from leafe.envs.alfworld._engine import Engine


def forms(put: str) -> str:
    """The list of commands; `put` is the game's form of putting down (`move {o} to {r}`)."""
    down = put.replace("{o}", "OBJECT").replace("{r}", "RECEPTACLE")
    listed = [
        "look",
        "inventory",
        "go to RECEPTACLE",
        "open RECEPTACLE",
        "close RECEPTACLE",
        "examine RECEPTACLE or OBJECT",
        "take OBJECT from RECEPTACLE",
        down,
        "clean OBJECT with RECEPTACLE",
        "heat OBJECT with RECEPTACLE",
        "cool OBJECT with RECEPTACLE",
        "use OBJECT",
        "slice OBJECT with OBJECT",
    ]
    return ", ".join(form for form in listed if form)


def why_not(engine: Engine, command: str, put: str) -> str:
    """One or two sentences on why `command` did nothing."""
    thing, place = r"(?P<thing>.+?)", r"(?P<place>.+)"
    down = re.escape(put).replace(r"\{o\}", thing).replace(r"\{r\}", place) if put else r"(?!)"
    patterns = {
        "go": rf"go to {place}",
        "open": rf"open {place}",
        "close": rf"close {place}",
        "take": rf"take {thing} from {place}",
        "put": down,
        "treat": rf"(?P<verb>clean|heat|cool) {thing} with {place}",
        "use": rf"use {thing}",
        "examine": rf"examine {thing}",
        "slice": rf"slice {thing} with (?P<tool>.+)",
    }
    for kind, pattern in patterns.items():
        match = re.fullmatch(pattern, command.strip())
        if match is not None:
            return _reason(_Scene(engine), kind, match.groupdict())
    return (
        f"There is no such command. The commands are: {forms(put)}. Names end in a number, as "
        "in 'cabinet 1'."
    )


class _Scene:
    """What the player sees: the place, what is carried, what is closed."""

    def __init__(self, engine: Engine) -> None:
        facts = list(
            engine.facts(
                "atlocation", "receptacleatlocation", "openable", "opened", "holds", "inreceptacle"
            )
        )
        here = {fact[2] for fact in facts if fact[0] == "atlocation"}
        self.places = {engine.shown(fact[1]) for fact in facts if fact[0] == "receptacleatlocation"}
        self.near = {
            engine.shown(fact[1])
            for fact in facts
            if fact[0] == "receptacleatlocation" and fact[2] in here
        }
        self.openable = {engine.shown(fact[1]) for fact in facts if fact[0] == "openable"}
        self.open = {engine.shown(fact[1]) for fact in facts if fact[0] == "opened"}
        self.held = [engine.shown(fact[2]) for fact in facts if fact[0] == "holds"]
        self.seen = {
            engine.shown(fact[1]): engine.shown(fact[2])
            for fact in facts
            if fact[0] == "inreceptacle" and self.shows(engine.shown(fact[2]))
        }

    def shut(self, place: str) -> bool:
        return place in self.openable and place not in self.open

    def shows(self, place: str) -> bool:
        """Whether the player is at the place and can see into it."""
        return place in self.near and not self.shut(place)


def _reason(scene: _Scene, kind: str, parts: dict[str, str | None]) -> str:
    thing, place = parts.get("thing") or "", parts.get("place") or ""
    if place and place not in scene.places:
        return (
            f"There is no {place!r} in this room: name a receptacle as the first description "
            "does, with its number."
        )
    if kind == "go":
        return f"You stand at the {place} already."
    if place and kind not in ("put", "treat") and place not in scene.near:
        return f"You are not at the {place}: go to {place} first."
    if kind in ("open", "close"):
        if place not in scene.openable:
            return f"The {place} cannot be opened or closed."
        return f"The {place} is {'open' if place in scene.open else 'closed'} already."
    if kind == "take":
        if scene.shut(place):
            return f"The {place} is closed: open {place} first."
        if scene.seen.get(thing) != place:
            return f"There is no {thing!r} in or on the {place}."
        if scene.held:
            return f"You carry the {scene.held[0]} and have one hand only: put it down first."
        return f"The {thing} cannot be taken."
    if kind in ("put", "treat"):
        if thing not in scene.held:
            return (
                f"You do not carry {thing!r}: take it first."
                if not scene.held
                else f"You do not carry {thing!r}: you carry the {scene.held[0]}."
            )
        if place not in scene.near:
            return f"You are not at the {place}: go to {place} first."
        if kind == "treat":
            return (
                f"You cannot {parts['verb']} the {thing} with the {place}: cleaning is done at "
                "a sinkbasin, heating in a microwave, cooling in a fridge."
            )
        return (
            f"The {place} is closed: open {place} first."
            if scene.shut(place)
            else f"The {thing} does not belong in or on the {place}."
        )
    if kind == "use":
        if thing in scene.seen or thing in scene.held:
            return f"The {thing} has no switch."
        return f"There is no {thing!r} where you are: go to where it stands first."
    if kind == "examine":
        return (
            f"You do not see {thing!r} from where you are: you can examine what you carry, the "
            "receptacle before you and what lies in or on it."
        )
    return (
        f"You cannot slice {thing!r} now: it must lie where you are, with a knife or "
        "butterknife in your hand."
    )
