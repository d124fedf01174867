"""The progress of a game, in the stages of its task type: carried, changed, placed.

Only things of the goal's type count.
"""

from __future__ import annotations

from leafe.envs.alfworld._engine import Engine

_CHANGED = {
    "pick_clean_then_place_in_recep": "isclean",
    "pick_heat_then_place_in_recep": "ishot",
    "pick_cool_then_place_in_recep": "iscool",
}


class Stages:
    """The stages of the goal of the engine's current game."""

    def __init__(self, engine: Engine, type: str, thing: str, place: str, lamp: str) -> None:
        self._engine = engine
        self._type = type
        kinds = {fact[1]: fact[2] for fact in engine.facts("objecttype", "receptacletype")}
        self._things = {name for name, kind in kinds.items() if kind == f"{thing.lower()}type"}
        self._places = {name for name, kind in kinds.items() if kind == f"{place.lower()}type"}
        self._lamps = {name for name, kind in kinds.items() if kind == f"{lamp.lower()}type"}
        self.all = {"pick_and_place_simple": 2, "pick_two_obj_and_place": 4}.get(type, 3)

    def reached(self) -> int:
        """The stages that are passed now. The number may fall again, so keep the best."""
        changed = _CHANGED.get(self._type, "")
        facts = list(self._engine.facts("holds", "inreceptacle", "istoggled", changed))
        held = any(fact[0] == "holds" and fact[2] in self._things for fact in facts)
        if self._type == "look_at_obj_in_light":
            return held + any(fact[0] == "istoggled" and fact[1] in self._lamps for fact in facts)
        if changed:
            return (
                2
                if any(fact[0] == changed and fact[1] in self._things for fact in facts)
                else int(held)
            )
        if self._type == "pick_two_obj_and_place":
            placed = [
                fact[2]
                for fact in facts
                if fact[0] == "inreceptacle" and fact[1] in self._things and fact[2] in self._places
            ]
            return min(3, 2 * bool(placed) + held)
        return int(held)
