"""One ALFWorld game in play: textworld's own planner library, state and grammar, without doing the
same work twice.

textworld's `PddlEnv` translates the PDDL problem twice at every load and every reset, parses the
grammar for every command that is
possible, after every step. What comes out is decided by the game alone, so it is kept: the
translated game (for the `KEPT` games that were
played last), the parsed grammar (games differ in the goal's sentence only), the wording of each
command. The words are the same, letter for
letter (a test plays both side by side).
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from leafe.core import UserError

KEPT = 16
"""Games whose translation is kept in memory, a few MB each."""
KEYS = ("pddl_domain", "grammar", "pddl_problem")
"""What a game file must have."""
NOTHING = "Nothing happens."
"""What the environment says to whatever is not possible."""

_SENTENCE = re.compile(r'Your task is to: ((?:[^"\\]|\\.)*?)\.?"')
_PUT = re.compile(r'action PutObject \{\s*template :: "([^"]*)"')
_PLACEHOLDER = "UNKNOWN GOAL"
"""What the wheel's own grammar has in the goal's place."""

Fact = tuple[str, ...]
"""Predicate and arguments as the planner spells them: lower case."""


def read_game(path: Path) -> dict[str, Any]:
    """The game file's contents; UserError where it is not there, was cut off or is of another
    kind."""
    try:
        game = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"The ALFWorld game {path} is not there: correct the option data, or download "
            "or make the games again."
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(
            f"The ALFWorld game {path} cannot be read ({error}): it was cut off or "
            "damaged; download or make the games again."
        ) from error
    lacking = [
        key for key in KEYS if not isinstance(game, dict) or not isinstance(game.get(key), str)
    ]
    if lacking:
        raise UserError(
            f"The ALFWorld game {path} has no {lacking[0]!r}: it is of another version; "
            "alfworld 0.4 reads json_2.1.2_tw-pddl."
        )
    return dict(game)


def goal_sentence(game: Mapping[str, Any]) -> str:
    """The goal in the game's own words, without the full stop."""
    found = _SENTENCE.search(game["grammar"])
    return str(json.loads(f'"{found[1]}"')) if found else ""


def put_form(game: Mapping[str, Any]) -> str:
    """How the game wants a thing put down: `move {o} to {r}` in games of alfworld 0.4, `put {o}
    in/on {r}` before; empty where it does not say."""
    found = _PUT.search(game["grammar"])
    return found[1] if found else ""


@dataclass(slots=True)
class _Translated:
    """What a game's PDDL becomes, once."""

    sas: bytes
    actions: Mapping[str, Any]
    """The planner's schemas by name: their parameters name a grounded action's arguments."""
    facts: Sequence[Any]
    """textworld propositions that hold at the start and that the planner may have left out as
    constant."""
    type_of: Mapping[str, str]
    types: Sequence[Any]
    logic: Any
    infos: Mapping[str, Any]
    """Entity id -> textworld's EntityInfo, with the name that is shown."""
    sentence: str
    written: dict[tuple[str, ...], str] = field(default_factory=dict)
    """Command template and the arguments that it mentions -> the command."""


_libraries: list[Any] = []
"""Copies of the planner's library that no engine uses. None is ever unloaded: the process died of
that now and then. A game that is loaded takes the
place of the one before."""


def _take_library() -> Any:
    import fast_downward

    return _libraries.pop() if _libraries else fast_downward.load_lib()


class Engine:
    """Plays one game at a time. Holds a copy of the planner's library: all state is this process's
    memory, and there are no threads."""

    def __init__(self) -> None:
        self._library = _take_library()
        self._kept: OrderedDict[tuple[object, ...], _Translated] = OrderedDict()
        self._logics: dict[str, Any] = {}
        self._game: _Translated | None = None
        self._state: Any = None
        self._possible: dict[str, Any] = {}

    def start(self, path: Path) -> str:
        """Begin the game of a file; returns its first words."""
        key = _identity(path)
        game = self._kept.get(key)
        if game is None:
            game = self._kept[key] = self._translate(read_game(path), str(path))
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        self._game = game
        self._state = _state(self._library, game)
        words = self._say("#intro#", {}).replace(_PLACEHOLDER, game.sentence)
        self._look_what_is_possible()
        return words

    def act(self, command: str) -> str:
        """Take a command; returns the environment's words: `NOTHING` where it is not possible
        now."""
        action = self._possible.get(command.strip())
        if action is None:
            return NOTHING
        self._state.apply(action)
        words = self._say(action.feedback_rule, action.mapping)
        self._look_what_is_possible()
        return words

    @property
    def commands(self) -> list[str]:
        """Every command that is possible now, sorted."""
        return sorted(self._possible)

    @property
    def won(self) -> bool:
        return bool(self._state.check_goal())

    def facts(self, *predicates: str) -> Iterator[Fact]:
        """Those of the present facts that have one of these names."""
        for fact in self._state.facts:
            if fact.name in predicates:
                yield (fact.name, *fact.names)

    def shown(self, entity: str) -> str:
        """The name that is shown for a thing, receptacle, ...: `apple 1`."""
        assert self._game is not None
        return str(self._game.infos[entity].name)

    @property
    def entities(self) -> Mapping[str, str]:
        """What is shown -> how the planner spells it, for all that the game has."""
        assert self._game is not None
        return {info.name: name for name, info in self._game.infos.items()}

    def plan(self, problem: str) -> list[str] | None:
        """A plan for `problem`, told in the commands of the game in play, which begins anew
        afterwards; None where the planner finds none."""
        import fast_downward

        game = self._game
        assert game is not None
        domain = game.logic.domain
        with _quiet():
            sas = fast_downward.pddl2sas(domain, problem)[1]
            optimised = fast_downward.pddl2sas(domain, problem, optimize=True)[1]
        self._library.load_sas(sas.encode())
        self._library.load_sas_replan(optimised.encode())
        try:
            commands = self._state.replan(game.infos)
        finally:
            self._state = _state(self._library, game)
            self._look_what_is_possible()
        return list(commands) or None

    def close(self) -> None:
        """Leave the planner's library to the next engine."""
        if self._library is not None:
            _libraries.append(self._library)
        self._library = None

    def _translate(self, game: Mapping[str, Any], where: str) -> _Translated:
        import fast_downward
        from alfworld.agents.utils.misc import Demangler
        from textworld.envs.pddl.pddl import PddlEnv

        sentence = goal_sentence(game)
        logic = self._logic(
            game["pddl_domain"],
            _SENTENCE.sub(f'Your task is to: {_PLACEHOLDER}."', game["grammar"], count=1),
            where,
        )
        try:
            with _quiet():
                task, sas = fast_downward.pddl2sas(game["pddl_domain"], game["pddl_problem"])
        except (Exception, SystemExit) as error:  # its parser leaves by sys.exit
            raise UserError(
                f"The ALFWorld game {where} holds PDDL that cannot be translated "
                f"({error}): download or make the games again."
            ) from error
        if (
            "Atom dummy(val1)" in sas
        ):  # what the translator writes where the goal is out of reach from the start
            raise UserError(
                f"The ALFWorld game {where} cannot be won: its goal is out of reach. "
                "Download or make the games again."
            )
        type_of = {thing.name: thing.type_name for thing in task.objects}
        translated = _Translated(
            sas.encode(),
            {a.name: a for a in task.actions},
            list(_initial(task, type_of)),
            type_of,
            list(task.types),
            logic,
            {},
            sentence,
        )
        host = PddlEnv.__new__(PddlEnv)
        host._pddl_state = _state(self._library, translated)
        infos = host._get_entity_infos()
        names = Demangler(game_infos=infos, shuffle=False)
        for info in infos.values():
            info.name = names.demangle_alfred_name(info.id)
        translated.infos = infos
        return translated

    def _logic(self, domain: str, grammar: str, where: str) -> Any:
        from textworld.envs.pddl.logic import GameLogic

        logic = self._logics.get(grammar)
        if logic is None or logic.domain != domain:
            try:
                logic = GameLogic(domain=domain, grammar=grammar)
            except Exception as error:
                raise UserError(
                    f"The ALFWorld game {where} holds a grammar that cannot be parsed "
                    f"({error}): download or make the games again."
                ) from error
            self._logics[grammar] = logic
        return logic

    def _say(self, rule: str, mapping: Mapping[Any, Any]) -> str:
        game, state = self._game, self._state
        assert game is not None
        variables = _Shallow(
            {
                placeholder.name: game.infos[variable.name]
                for placeholder, variable in mapping.items()
            }
        )
        context = {
            "state": state,
            "facts": [],
            "variables": variables,
            "mapping": _Shallow(mapping),
            "entity_infos": game.infos,
        }
        with _parsed_once():
            return str(game.logic.grammar.derive(rule, context))

    def _look_what_is_possible(self) -> None:
        """Command -> action. Where two actions are told alike the first one is taken, as textworld
        does."""
        game = self._game
        assert game is not None
        self._possible = {}
        for action in self._state.all_applicable_actions():
            arguments = {
                placeholder.name: variable.name for placeholder, variable in action.mapping.items()
            }
            template = action.command_template
            key = (
                template,
                *(
                    f"{name}={value}"
                    for name, value in arguments.items()
                    if name in _words(template)
                ),
            )
            command = game.written.get(key)
            if command is None:
                action.command_template = self._say(template, action.mapping)
                command = game.written[key] = action.format_command(
                    {name: game.infos[value].name for name, value in arguments.items()}
                )
            self._possible.setdefault(command, action)


def _identity(path: Path) -> tuple[object, ...]:
    """Another game that came to lie at the same place is another game."""
    try:
        now = path.stat()
    except OSError:
        return (path,)
    return (path, now.st_mtime_ns, now.st_size, now.st_ino)


@lru_cache(maxsize=256)
def _words(template: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", template))


def _initial(task: Any, type_of: Mapping[str, str]) -> Iterator[Any]:
    """The atoms of the problem's init as textworld's propositions. Numbers (costs, distances) are
    no facts."""
    from textworld.logic import Proposition, Variable

    for atom in task.init:
        predicate = getattr(atom, "predicate", "=")
        if predicate != "=":
            yield Proposition(predicate, [Variable(name, type_of[name]) for name in atom.args])


def _state(library: Any, game: _Translated) -> Any:
    """textworld's state of a game at its start, from the translation instead of the PDDL."""
    import textworld
    from textworld.envs.pddl.logic import Atom, PddlState

    state = PddlState.__new__(PddlState)
    state._facts, state._vars_by_name = defaultdict(set), {}
    state._vars_by_type, state._var_counts = defaultdict(set), Counter()
    state._logic, state.downward_lib = game.logic, library
    state._actions, state.name2type = game.actions, game.type_of
    for kind in game.types:
        with contextlib.suppress(ValueError):  # known already
            game.logic.types.add(textworld.logic.Type(kind.name, kind.supertype_names))
    library.load_sas(game.sas)
    state.add_facts(game.facts)
    atoms = (Atom * library.get_state_size())()
    library.get_state(atoms)
    state.add_facts(
        fact for fact in (atom.get_fact(game.type_of) for atom in atoms) if not fact.is_negation
    )
    return state


class _Shallow(dict[Any, Any]):
    """What the grammar copies for every symbol: its entries never change, so a flat copy will
    do."""

    def __deepcopy__(self, memo: object) -> _Shallow:
        return _Shallow(self)


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """Within it, textworld's grammar parses each text and each query once in this process."""
    from textworld.envs.pddl import textgen

    before = textgen.Rule, textgen._parse_and_convert
    textgen.Rule, textgen._parse_and_convert = _Rules, _symbols
    try:
        yield
    finally:
        textgen.Rule, textgen._parse_and_convert = before


class _Rules:
    """In place of textworld's `Rule`, as the grammar uses it."""

    @staticmethod
    @lru_cache(maxsize=1024)
    def parse_conjunctive_query(text: str) -> Any:
        from textworld.logic import Rule

        return Rule.parse_conjunctive_query(text)


def _symbols(text: str, rule_name: str, trace: bool = False) -> Any:
    """In place of the grammar's parser: a fresh copy each time, since the grammar writes into what
    it is given."""
    return deepcopy(_parse(text, rule_name))


@lru_cache(maxsize=1024)
def _parse(text: str, rule_name: str) -> Any:
    from textworld.envs.pddl import textgen

    return textgen._Converter().walk(textgen._PARSER.parse(text, rule_name=rule_name))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The translator overwrites sys.argv."""
    arguments = sys.argv
    try:
        yield
    finally:
        sys.argv = arguments
