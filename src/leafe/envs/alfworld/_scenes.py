"""Draws a household from the installed package's data: floor plan and seed -> PDDL problem and
goal.

For 120 floor plans the package has the position from which each receptacle is reached, the types of
thing in the room, and where one can walk; also which receptacle may hold what, what can be heated
and so on, and the goals of the six task types. It does not say where things are: that is drawn
here. Receptacles without a position in the package (stove burners, coffee machine, toaster, ...)
get one that is drawn once for the floor plan, so that all games of a floor plan share one room.

A game is never won at its start: nothing of the wanted type is in the wanted receptacle.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

from leafe.core import derive_seed

TASK_TYPES = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
"""The benchmark's six, in the order of its numbers 1 to 6."""

Location = tuple[int, int, int, int]
"""x and z in steps of 0.25 m, rotation in quarter turns, camera angle in degrees."""

_LAMP = "DeskLamp"
"""The lamp of look_at_obj_in_light. It stands in a receptacle."""
_LAMP_STANDS = ("Desk", "SideTable", "Dresser", "CoffeeTable", "DiningTable", "TVStand", "Shelf")
_COPIES = (1, 1, 1, 2, 2, 3)
"""How many things of one type a room has: one of these numbers."""
_CHANGES = {  # task type -> (ability of the thing, receptacle that does it)
    "pick_clean_then_place_in_recep": ("Cleanable", "SinkBasin"),
    "pick_heat_then_place_in_recep": ("Heatable", "Microwave"),
    "pick_cool_then_place_in_recep": ("Coolable", "Fridge"),
}


@dataclass(frozen=True, slots=True)
class Room:
    """What all games of a floor plan share."""

    number: int
    receptacles: Mapping[str, Location]
    """Name in ALFRED's form (`Cabinet|+00.68|+00.50|-02.20`) -> position from which it is used."""
    kinds: tuple[str, ...]
    """The types of thing in this floor plan that can be carried."""
    has_lamp: bool
    start: Location
    """A position in the room from which no receptacle can be reached."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What a game asks for."""

    task_type: str
    thing: str
    """The type of thing, for instance `Apple`."""
    place: str
    """The type of receptacle; empty for look_at_obj_in_light."""

    @property
    def folder(self) -> str:
        """The folder name in the official layout, without the number of the floor plan."""
        return f"{self.task_type}-{self.thing}-None-{self.place or _LAMP}"


@dataclass(frozen=True, slots=True)
class Game:
    """A generated game, not yet proved to be solvable."""

    room: Room
    goal: Goal
    sentence: str
    """The goal in words, from one of the package's templates."""
    problem: str
    """PDDL."""
    core: str
    """The problem without the things and receptacles that the goal does not need. They cannot help,
    and the planner is far faster without them."""


def floor_plans(seen: bool) -> list[int]:
    """The numbers of the package's training floor plans (`seen`), or of the others."""
    constants = _constants()
    return list(constants.TRAIN_SCENE_NUMBERS if seen else constants.TEST_SCENE_NUMBERS)


def draw_game(task_type: str, plans: Sequence[int], seed: int) -> Game:
    """Draw a game of a task type in one of the floor plans; ValueError if none can have such a
    game."""
    chance = random.Random(derive_seed(seed, "alfworld game", task_type))
    rooms = [n for n in plans if _kind_of(n) in _constants().GOALS_VALID[task_type]]
    chance.shuffle(rooms)
    for number in rooms:
        room = load_room(number)
        goals = possible_goals(task_type, room)
        if goals:
            goal = chance.choice(goals)
            sentence, things = _sentence(goal, chance), _things(room, goal, chance)
            needed = {
                name: home for name, home in things.items() if type_of(name) in (goal.thing, _LAMP)
            }
            used = (goal.place, _CHANGES.get(task_type, ("", ""))[1])
            places = {
                name: spot
                for name, spot in room.receptacles.items()
                if name in needed.values() or type_of(name) in used
            }
            return Game(
                room,
                goal,
                sentence,
                _problem(room, goal, things),
                _problem(replace(room, receptacles=places), goal, needed),
            )
    raise ValueError(f"no floor plan among {list(plans)} can have a game {task_type!r}")


@cache
def load_room(number: int) -> Room:
    """A floor plan by its number."""
    import numpy as np

    constants = _constants()
    folder = resources.files("alfworld") / "gen" / "layouts"
    reach = json.loads((folder / f"FloorPlan{number}-openable.json").read_text())
    present = set(json.loads((folder / f"FloorPlan{number}-objects.json").read_text()))
    with (folder / f"FloorPlan{number}-layout.npy").open("rb") as file:
        walkable = sorted((round(float(x) * 4), round(float(z) * 4)) for x, z in np.load(file))
    chance = random.Random(derive_seed(0, "alfworld room", number))
    receptacles: dict[str, Location] = {
        name: (round(x * 4), round(z * 4), round(turn / 90) % 4, round(angle))
        for name, (x, z, turn, angle) in sorted(reach.items())
    }
    fixed = constants.RECEPTACLES - set(constants.MOVABLE_RECEPTACLES)
    known = {type_of(name) for name in receptacles}
    for kind in sorted((present & fixed) - known):
        for _ in range(4 if kind == "StoveBurner" else 1):
            (x, z), height = chance.choice(walkable), chance.randint(50, 150)
            owner = kind.removesuffix("Basin") if kind.endswith("Basin") else kind
            name = f"{owner}|{x / 4:+06.2f}|{height / 100:+06.2f}|{z / 4:+06.2f}" + (
                f"|{kind}" if owner != kind else ""
            )
            receptacles[name] = (x, z, chance.randrange(4), 30)
    taken = {(x, z) for x, z, _, _ in receptacles.values()}
    free = [spot for spot in walkable if spot not in taken] or walkable
    start = (*chance.choice(free), chance.randrange(4), 0)
    holdable = {
        thing
        for kind in {type_of(n) for n in receptacles}
        for thing in constants.VAL_RECEPTACLE_OBJECTS.get(kind, ())
    }
    kinds = tuple(sorted(present & holdable & set(constants.OBJECTS)))
    stands = any(type_of(name) in _LAMP_STANDS for name in receptacles)
    return Room(number, receptacles, kinds, _LAMP in present and stands, start)


def possible_goals(task_type: str, room: Room) -> list[Goal]:
    """Every goal of this type that the room allows, sorted."""
    constants = _constants()
    types = {type_of(name) for name in room.receptacles}
    if task_type == "look_at_obj_in_light":
        return [Goal(task_type, thing, "") for thing in room.kinds] if room.has_lamp else []
    allows, tool = _CHANGES.get(task_type, (None, None))
    if tool is not None and tool not in types:
        return []
    return [
        Goal(task_type, thing, place)
        for thing in room.kinds
        if allows is None or thing in constants.VAL_ACTION_OBJECTS[allows]
        for place in sorted(types - {tool})
        if thing in constants.VAL_RECEPTACLE_OBJECTS.get(place, ())
        and _homes(thing, room, without=place)
    ]


def type_of(name: str) -> str:
    """`Sink|...|SinkBasin` -> `SinkBasin`; `Cabinet|...` -> `Cabinet`."""
    parts = name.split("|")
    return parts[4] if len(parts) == 5 else parts[0]


def _homes(thing: str, room: Room, without: str = "") -> list[str]:
    """The receptacles that may hold the thing, except those of one type."""
    allowed = _constants().VAL_RECEPTACLE_OBJECTS
    return [
        name
        for name in room.receptacles
        if type_of(name) != without and thing in allowed.get(type_of(name), ())
    ]


def _sentence(goal: Goal, chance: random.Random) -> str:
    from alfworld.gen.goal_library import gdict

    template = chance.choice(gdict[goal.task_type]["templates"])
    return str(
        template.format(
            obj=goal.thing.lower(), recep=goal.place.lower(), toggle=_LAMP.lower(), mrecep=""
        )
    )


def _things(room: Room, goal: Goal, chance: random.Random) -> dict[str, str]:
    """Name -> receptacle. No wanted thing is where the goal wants it."""
    things: dict[str, str] = {}
    for kind in room.kinds:
        wanted = kind == goal.thing
        copies = chance.choice(_COPIES)
        if wanted and goal.task_type == "pick_two_obj_and_place":
            copies = max(copies, 2)
        homes = _homes(kind, room, without=goal.place if wanted else "")
        for _ in range(copies if homes else 0):
            things[_placed(kind, chance)] = chance.choice(homes)
    if room.has_lamp:
        things[_placed(_LAMP, chance)] = chance.choice(
            [name for name in room.receptacles if type_of(name) in _LAMP_STANDS]
        )
    return things


def _problem(room: Room, goal: Goal, things: Mapping[str, str]) -> str:
    """The PDDL problem, in a fixed order."""
    from alfworld.gen.goal_library import gdict

    constants = _constants()
    spots = sorted({*room.receptacles.values(), room.start})
    rtypes = sorted({type_of(name) for name in room.receptacles})
    otypes = sorted({type_of(name) for name in things})
    objects = ["agent1 # agent"]
    objects += [f"{kind}Type # otype" for kind in otypes] + [
        f"{kind}Type # rtype" for kind in rtypes
    ]
    objects += [f"{name} # object" for name in sorted(things)]
    objects += [f"{name} # receptacle" for name in sorted(room.receptacles)]
    objects += [f"{_loc(spot)} # location" for spot in spots]

    facts = ["(= (total-cost) 0)", f"(atLocation agent1 {_loc(room.start)})"]
    facts += [f"(receptacleType {name} {type_of(name)}Type)" for name in sorted(room.receptacles)]
    facts += [
        f"(receptacleAtLocation {name} {_loc(spot)})"
        for name, spot in sorted(room.receptacles.items())
    ]
    facts += [
        f"(openable {name})"
        for name in sorted(room.receptacles)
        if type_of(name) in constants.OPENABLE_CLASS_SET
    ]
    facts += [
        f"(canContain {place}Type {thing}Type)"
        for place in rtypes
        for thing in otypes
        if thing in constants.VAL_RECEPTACLE_OBJECTS.get(place, ())
    ]
    for name, home in sorted(things.items()):
        kind = type_of(name)
        facts += [
            f"(objectType {name} {kind}Type)",
            f"(inReceptacle {name} {home})",
            f"(objectAtLocation {name} {_loc(room.receptacles[home])})",
        ]
        facts.append(f"(toggleable {name})" if kind == _LAMP else f"(pickupable {name})")
        if kind in constants.MOVABLE_RECEPTACLES_SET:
            facts.append(f"(isReceptacleObject {name})")
        allowed = constants.VAL_ACTION_OBJECTS
        facts += [
            f"({ability.lower()} {name})"
            for ability in ("Cleanable", "Heatable", "Coolable", "Sliceable")
            if kind in allowed[ability]
        ]

    wanted_pddl = gdict[goal.task_type]["pddl"].format(
        obj=goal.thing, recep=goal.place, toggle=_LAMP, mrecep=""
    )
    text = "\n".join(
        [
            f"(define (problem leafe-{room.number})",
            "(:domain alfred)",
            "(:objects",
            *objects,
            ")",
            "(:init",
            *facts,
            ")",
            "\n".join(line.strip() for line in wanted_pddl.strip().splitlines()),
        ]
    )
    return _pddl_names(text) + "\n"


def _placed(kind: str, chance: random.Random) -> str:
    """A name in ALFRED's form, with a drawn position, which only makes it unique."""
    x, y, z = (chance.randint(-499, 499) / 100 for _ in range(3))
    return f"{kind}|{x:+06.2f}|{y:+06.2f}|{z:+06.2f}"


def _loc(spot: Location) -> str:
    return "loc|{}|{}|{}|{}".format(*spot)


_SPELLED = {"-": "_minus_", "#": "-", "|": "_bar_", "+": "_plus_", ".": "_dot_"}


def _pddl_names(text: str) -> str:
    """ALFRED's names as PDDL symbols; `#` stands for PDDL's own `-`, as in the package's goals."""
    lines = text.split("\n")
    return "\n".join(
        line if line.startswith("(:domain") else "".join(_SPELLED.get(c, c) for c in line)
        for line in lines
    )


def _kind_of(number: int) -> str:
    return next(str(kind) for kind, numbers in _constants().SCENE_TYPE.items() if number in numbers)


def _constants() -> Any:
    from alfworld.gen import constants

    return constants
