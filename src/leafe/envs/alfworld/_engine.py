"""Plays one ALFWorld game with textworld's planner library, state and grammar, each parsed once.

textworld's `PddlEnv` translates the PDDL problem twice at each load and reset, and parses the
grammar for each possible command after each step. The results follow from the game alone, so they
are kept: the translation (for the last `MAX_GAMES` games), the parsed grammar (games differ only in
the goal's sentence), and the wording of each command. The text is the same, letter for letter (a
test plays both side by side).
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

MAX_GAMES = 16
"""Games whose translation is kept in memory, a few MB each."""
KEYS = ("pddl_domain", "grammar", "pddl_problem")
"""The keys that a game file must have."""
NOTHING = "Nothing happens."
"""The answer to a command that is not possible."""

_SENTENCE = re.compile(r'Your task is to: ((?:[^"\\]|\\.)*?)\.?"')
_PUT = re.compile(r'action PutObject \{\s*template :: "([^"]*)"')
_PLACEHOLDER = "UNKNOWN GOAL"
"""The placeholder of the goal in the package's grammar."""

Fact = tuple[str, ...]
"""Predicate and arguments in the planner's spelling: lower case."""


def read_game(path: Path) -> dict[str, Any]:
    """The contents of a game file; UserError if it is absent, damaged or of another version."""
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
    missing = [
        key for key in KEYS if not isinstance(game, dict) or not isinstance(game.get(key), str)
    ]
    if missing:
        raise UserError(
            f"The ALFWorld game {path} has no {missing[0]!r}: it is of another version; "
            "alfworld 0.4 reads json_2.1.2_tw-pddl."
        )
    return dict(game)


def goal_sentence(game: Mapping[str, Any]) -> str:
    """The goal in the game's words, without the full stop."""
    found = _SENTENCE.search(game["grammar"])
    return str(json.loads(f'"{found[1]}"')) if found else ""


def put_form(game: Mapping[str, Any]) -> str:
    """The game's form of putting down: `move {o} to {r}` in games of alfworld 0.4, `put {o} in/on
    {r}` before; "" if unknown."""
    found = _PUT.search(game["grammar"])
    return found[1] if found else ""


@dataclass(slots=True)
class _Translated:
    """A translated game."""

    sas: bytes
    actions: Mapping[str, Any]
    """The planner's action schemas by name."""
    facts: Sequence[Any]
    """Propositions that hold at the start, including constant ones, which the planner may omit."""
    type_of: Mapping[str, str]
    types: Sequence[Any]
    logic: Any
    infos: Mapping[str, Any]
    """Entity id -> textworld's EntityInfo, with the shown name."""
    sentence: str
    written: dict[tuple[str, ...], str] = field(default_factory=dict)
    """(command template, its arguments) -> command."""


_libraries: list[Any] = []
"""Unused copies of the planner's library. None is ever unloaded, since that crashed the process now
and then. Loading a game replaces the previous one."""


def _take_library() -> Any:
    import fast_downward

    return _libraries.pop() if _libraries else fast_downward.load_lib()


class Engine:
    """Plays one game at a time, with its own copy of the planner's library. All state is this
    process's memory, and there are no threads."""

    def __init__(self) -> None:
        self._library = _take_library()
        self._kept: OrderedDict[tuple[object, ...], _Translated] = OrderedDict()
        self._logics: dict[str, Any] = {}
        self._game: _Translated | None = None
        self._state: Any = None
        self._possible: dict[str, Any] = {}

    def start(self, path: Path) -> str:
        """Start the game of a file; returns its first observation."""
        key = _identity(path)
        game = self._kept.get(key)
        if game is None:
            game = self._kept[key] = self._translate(read_game(path), str(path))
            while len(self._kept) > MAX_GAMES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        self._game = game
        self._state = _state(self._library, game)
        text = self._derive("#intro#", {}).replace(_PLACEHOLDER, game.sentence)
        self._update_commands()
        return text

    def act(self, command: str) -> str:
        """Take a command; returns the observation, `NOTHING` if it is not possible now."""
        action = self._possible.get(command.strip())
        if action is None:
            return NOTHING
        self._state.apply(action)
        text = self._derive(action.feedback_rule, action.mapping)
        self._update_commands()
        return text

    @property
    def commands(self) -> list[str]:
        """The possible commands, sorted."""
        return sorted(self._possible)

    @property
    def won(self) -> bool:
        return bool(self._state.check_goal())

    def facts(self, *predicates: str) -> Iterator[Fact]:
        """The current facts with one of these predicates."""
        for fact in self._state.facts:
            if fact.name in predicates:
                yield (fact.name, *fact.names)

    def shown(self, entity: str) -> str:
        """The shown name of an entity: `apple 1`."""
        assert self._game is not None
        return str(self._game.infos[entity].name)

    @property
    def entities(self) -> Mapping[str, str]:
        """Shown name -> planner name, for all entities of the game."""
        assert self._game is not None
        return {info.name: name for name, info in self._game.infos.items()}

    def plan(self, problem: str) -> list[str] | None:
        """A plan for `problem` in commands of the current game, which restarts afterwards; None if
        there is none."""
        import fast_downward

        game = self._game
        assert game is not None
        domain = game.logic.domain
        with _argv_restored():
            sas = fast_downward.pddl2sas(domain, problem)[1]
            optimised = fast_downward.pddl2sas(domain, problem, optimize=True)[1]
        self._library.load_sas(sas.encode())
        self._library.load_sas_replan(optimised.encode())
        try:
            commands = self._state.replan(game.infos)
        finally:
            self._state = _state(self._library, game)
            self._update_commands()
        return list(commands) or None

    def close(self) -> None:
        """Return the planner's library, for the next engine."""
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
            with _argv_restored():
                task, sas = fast_downward.pddl2sas(game["pddl_domain"], game["pddl_problem"])
        except (Exception, SystemExit) as error:  # its parser leaves by sys.exit
            raise UserError(
                f"The ALFWorld game {where} holds PDDL that cannot be translated "
                f"({error}): download or make the games again."
            ) from error
        if "Atom dummy(val1)" in sas:  # the translator's sign of an unreachable goal
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

    def _derive(self, rule: str, mapping: Mapping[Any, Any]) -> str:
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

    def _update_commands(self) -> None:
        """Collect the possible commands. Of two actions with the same command the first counts, as
        in textworld."""
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
                action.command_template = self._derive(template, action.mapping)
                command = game.written[key] = action.format_command(
                    {name: game.infos[value].name for name, value in arguments.items()}
                )
            self._possible.setdefault(command, action)


def _identity(path: Path) -> tuple[object, ...]:
    """The identity of a file: a new game at the same path is another game."""
    try:
        now = path.stat()
    except OSError:
        return (path,)
    return (path, now.st_mtime_ns, now.st_size, now.st_ino)


@lru_cache(maxsize=256)
def _words(template: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", template))


def _initial(task: Any, type_of: Mapping[str, str]) -> Iterator[Any]:
    """The initial atoms as textworld propositions, without numbers (costs, distances)."""
    from textworld.logic import Proposition, Variable

    for atom in task.init:
        predicate = getattr(atom, "predicate", "=")
        if predicate != "=":
            yield Proposition(predicate, [Variable(name, type_of[name]) for name in atom.args])


def _state(library: Any, game: _Translated) -> Any:
    """textworld's initial state of a game, from the translation instead of the PDDL."""
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
    """What the grammar copies for each symbol. Its entries never change, so a flat copy is
    enough."""

    def __deepcopy__(self, memo: object) -> _Shallow:
        return _Shallow(self)


@contextlib.contextmanager
def _parsed_once() -> Iterator[None]:
    """Meanwhile textworld's grammar parses each text and query only once."""
    from textworld.envs.pddl import textgen

    before = textgen.Rule, textgen._parse_and_convert
    textgen.Rule, textgen._parse_and_convert = _Rules, _symbols
    try:
        yield
    finally:
        textgen.Rule, textgen._parse_and_convert = before


class _Rules:
    """Replaces textworld's `Rule`, as the grammar uses it."""

    @staticmethod
    @lru_cache(maxsize=1024)
    def parse_conjunctive_query(text: str) -> Any:
        from textworld.logic import Rule

        return Rule.parse_conjunctive_query(text)


def _symbols(text: str, rule_name: str, trace: bool = False) -> Any:
    """Replaces the grammar's parser. Returns a new copy each time, since the grammar writes into
    it."""
    return deepcopy(_parse(text, rule_name))


@lru_cache(maxsize=1024)
def _parse(text: str, rule_name: str) -> Any:
    from textworld.envs.pddl import textgen

    return textgen._Converter().walk(textgen._PARSER.parse(text, rule_name=rule_name))


@contextlib.contextmanager
def _argv_restored() -> Iterator[None]:
    """The translator overwrites sys.argv: restore it."""
    arguments = sys.argv
    try:
        yield
    finally:
        sys.argv = arguments
