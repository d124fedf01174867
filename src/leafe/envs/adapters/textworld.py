"""TextWorld games (`tw-make`): text adventures from the user's files, or made here from a seed.

Observations are the game's own text without its title banner and status line. A command that the
game does not accept is undone in the interpreter, so that it changes nothing, not even the turn
count. Commands to the interpreter itself (save, undo, restart, ...) are refused: they would write
files or leave the game.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

from leafe.core import EnvError, Environment, StepResult, Task, UserError, derive_seed
from leafe.core.processes import with_default_signals
from leafe.core.secret import inherited
from leafe.envs._options import check_split, require_package, shuffled, whole_number

CHALLENGES: Mapping[str, tuple[str, str]] = {
    "coin": ("tw-coin_collector", "Find the coin and take it."),
    "treasure": ("tw-treasure_hunter", "Find the object that the game asks for and take it."),
    "cooking": ("tw-cooking", "Find the cookbook, prepare the meal that it describes and eat it."),
    "simple": ("tw-simple", "Do what the game asks of you."),
}
"""Kinds of game that can be made here: tw-make's name and the instruction. The game's first
observation gives the details."""
SIZES: Mapping[str, int] = {"train": 1000, "valid": 100, "test": 100}
"""Made games in each split."""
MAKE_SECONDS = 300.0
"""Limit for making one game, which takes about 4 s."""

MAX_COMMAND = 150
"""Characters of a command. The interpreter ignores what follows its 200th."""

_META = frozenset(
    re.findall(
        r"\w+",
        "again g oops restart restore save quit q undo verify version notify pronouns nouns "
        "superbrief verbose brief script noscript unscript transcript record recording replay",
    )
)
"""Commands to the interpreter itself, by their first word. Some of them write files."""
_PLAIN = re.compile(r"[A-Za-z0-9 '-]+")
"""The characters of a command. To the interpreter a backslash begins an order to itself (write a
file, leave), and it hangs on a zero byte."""
_STATUS = re.compile(r"\n?>[ \t]*(-= [^\n]* =-[ \t]*\S*)?\s*$")
_OVER = re.compile(r"\n*Would you like to RESTART.*", re.DOTALL)


class TextWorld(Environment):
    """TextWorld games: files made by tw-make, or coin, treasure, cooking and simple games made from
    a seed.

    The splits of files follow from their path: a name or folder with train, valid or test in it,
    else every tenth file is valid and the next one test. Made games are 1000 train, 100 valid and
    100 test, each made when it is first played.

    Args:
        games: A folder or a pattern of .z8 files, each with its .json beside it.
        make: Instead of `games`: a kind of game with tw-make's own settings, such as
            "coin:level=5", "treasure:level=5", "cooking:recipe=2,take=1,go=6,open,cook,cut" or
            "simple:rewards=dense,goal=brief".
        cache: The folder for made games. By default leafe/textworld in the user's cache folder.
        horizon: Steps.
    """

    name = "textworld"
    deterministic = True
    process: ClassVar[bool] = True
    forkable: ClassVar[bool] = True
    horizon = 50
    splits = ("train", "valid", "test")
    example: ClassVar[dict[str, str]] = {"make": "coin:level=5"}
    needs: ClassVar[str] = (
        "games: the option games (made by tw-make) or the option make; pip install "
        "'leafe[textworld]'"
    )
    actions_help = (
        "An action is one command of a text adventure: a verb and the names of things as "
        "the game writes them. Usual commands: look, inventory, "
        "go north, examine THING, take THING, take THING from PLACE, put THING on PLACE, "
        "insert THING into PLACE, open THING, close THING, "
        "unlock THING with KEY, eat THING."
    )

    def __init__(
        self,
        games: str | None = None,
        make: str | None = None,
        cache: str | None = None,
        horizon: int = 50,
    ) -> None:
        self.horizon = whole_number(self.name, "horizon", horizon)
        if (games is None) == (make is None):
            raise UserError(
                "The environment 'textworld' needs one of its options games (a folder of "
                ".z8 files) and make (such as 'coin:level=5'): give one."
            )
        require_package(self.name, "textworld", "textworld")
        self.files = _files(games) if games is not None else []
        self.root = Path(games).expanduser() if games is not None else Path()
        self.made = make
        self.arguments = _arguments(make) if make is not None else []
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.cache = Path(cache).expanduser() if cache else home / "leafe" / "textworld"
        self._game: Any = None
        self._playing: Path | None = None
        self._state: Any = None
        self._best = 0.0
        self._done = False

    def tasks(self, split: str, count: int | None = None, seed: int = 0) -> Sequence[Task]:
        """The split's games, in an order drawn by `seed`."""
        check_split(self.name, split, self.splits)
        if self.made is not None:
            instruction = CHALLENGES[self.made.partition(":")[0]][1]
            return [
                Task(
                    f"textworld-{_digest(self.made)}-{split}-{n}",
                    self.name,
                    split,
                    instruction,
                    {"make": self.made, "split": split, "number": n},
                )
                for n in shuffled(range(SIZES[split]), seed, "textworld", split)[:count]
            ]
        folder = self.root.is_dir()
        labels = {f: f.relative_to(self.root).as_posix() if folder else f.name for f in self.files}
        chosen = [
            file for at, file in enumerate(self.files) if _split_of(labels[file], at) == split
        ]
        return [
            Task(
                f"textworld-{labels[file].removesuffix('.z8').replace('/', '-')}",
                self.name,
                split,
                _objective(file),
                {"game": str(file)},
            )
            for file in shuffled(chosen, seed, "textworld", split)[:count]
        ]

    def reset(self, task: Task, seed: int) -> str:
        import textworld

        file = (
            Path(task.payload["game"])
            if "game" in task.payload
            else self._make(task.payload["split"], task.payload["number"])
        )
        if file != self._playing:
            self.close()
            _objective(file)  # raises UserError if the file is gone or damaged
            infos = ("admissible_commands", "won", "lost", "score", "max_score", "moves", "verbs")
            with warnings.catch_warnings():
                # jericho looks here for its support of some commercial games, which is not needed
                warnings.simplefilter("ignore")
                self._game = textworld.start(
                    str(file), textworld.EnvInfos(**dict.fromkeys(infos, True))
                )
            self._game.unwrapped.seed(0)  # else the clock; these games draw nothing anyway
            self._playing = file
        self._state = self._game.reset()
        self._done, self._best = False, float(self._state.score or 0)
        lines = self._state.feedback.splitlines()
        first = next((at for at, line in enumerate(lines) if any(c.isalnum() for c in line)), 0)
        return _cleaned("\n".join(lines[first:]))

    def step(self, action: str) -> StepResult:
        if self._game is None:
            raise RuntimeError("step before reset")
        if self._done:
            return StepResult("The game is over.", valid=False, done=True, progress=self._best)
        command = " ".join(action.split())
        if refused := self._refused(command):
            return StepResult(f"{refused} Nothing changed.", valid=False, progress=self._best)
        before = self._state.moves
        interpreter = self._game.unwrapped._jericho
        saved = interpreter.get_state()
        after = self._game.step(command)[0]
        text = _cleaned(after.feedback)
        if not (after.won or after.lost) and after.moves == before:
            interpreter.set_state(saved)
            return StepResult(
                f"{text} Nothing changed. The verbs of this game are: {', '.join(after.verbs)}.",
                valid=False,
                progress=self._best,
            )
        self._state, won = after, bool(after.won)
        self._best = max(self._best, float(after.score or 0))
        self._done = bool(won or after.lost)
        return StepResult(
            text,
            reward=float(won),
            done=self._done,
            success=won,
            progress=self._best,
            info={"score": after.score, "of": after.max_score},
        )

    def valid_actions(self) -> Sequence[str]:
        return [] if self._state is None or self._done else list(self._state.admissible_commands)

    def versions(self) -> Mapping[str, str]:
        games = "files of the user's" if self.made is None else f"made: {self.made}"
        return {"textworld": version("textworld"), "jericho": version("jericho"), "games": games}

    def close(self) -> None:
        if self._game is not None:
            self._game.close()
            self._game, self._playing, self._state = None, None, None

    def _refused(self, command: str) -> str:
        words = command.lower().split()
        if not words:
            return "There is no command: write a verb and the thing that it is for."
        if len(command) > MAX_COMMAND:
            return f"A command has at most {MAX_COMMAND} characters."
        if words[0] in _META or words[0].startswith("tw-"):
            return f"{words[0]!r} is no action of this game."
        if command not in self._state.admissible_commands and (
            not _PLAIN.fullmatch(command) or "then" in words
        ):
            return "A command is one at a time, in plain letters and digits, without punctuation."
        return ""

    def _make(self, split: str, number: int) -> Path:
        """The game's file, made if it is not there. One version always makes the same bytes."""
        assert self.made is not None
        folder = self.cache / f"textworld-{version('textworld')}" / _digest(self.made)
        file = folder / f"{split}-{number}.z8"
        if file.is_file() and file.with_suffix(".json").is_file():
            return file
        folder.mkdir(parents=True, exist_ok=True)
        program = shutil.which("tw-make", path=sysconfig.get_path("scripts")) or shutil.which(
            "tw-make"
        )
        if program is None:
            raise UserError(
                "The program tw-make cannot be found: run pip install 'leafe[textworld]' again."
            )
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            made = Path(scratch) / "game.z8"
            seed = derive_seed(0, "textworld game", self.made, split, number) % (1 << 31)
            command = [
                program,
                *self.arguments,
                "--seed",
                str(seed),
                "--output",
                str(made),
                "--silent",
            ]
            try:  # its draws depend on PYTHONHASHSEED
                done = subprocess.run(
                    with_default_signals(command),
                    capture_output=True,
                    text=True,
                    timeout=MAKE_SECONDS,
                    check=False,
                    env=inherited(PYTHONHASHSEED="0"),
                )
            except subprocess.TimeoutExpired as error:
                raise EnvError(
                    f"tw-make did not make the game {self.made!r} within {MAKE_SECONDS:g} s."
                ) from error
            if done.returncode or not made.is_file():
                said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no output"]
                raise UserError(
                    f"tw-make cannot make a game {self.made!r} ({said[0][:200]}): correct "
                    "the option make."
                )
            os.replace(made.with_suffix(".json"), file.with_suffix(".json"))
            os.replace(made, file)
        return file


def _files(games: str) -> list[Path]:
    """The .z8 files of a folder or pattern, sorted; UserError if there is none, or if one has no
    .json."""
    path = Path(games).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file())
    elif path.is_file():
        files = [path]
    else:
        files = (
            sorted(p for p in path.parent.glob(path.name) if p.is_file())
            if path.parent.is_dir()
            else []
        )
    found = [p for p in files if p.suffix == ".z8"]
    if not found:
        what = (
            "only .ulx files, which textworld plays no more since 1.7"
            if any(p.suffix == ".ulx" for p in files)
            else "no .z8 file"
        )
        raise UserError(
            f"The option games finds {what} at {path}: make some with tw-make, or give the "
            "option make."
        )
    for game in found:
        if game.with_suffix(".json").is_file():
            continue
        raise UserError(
            f"The game {game} has no .json beside it, which tw-make writes with it: copy "
            "it there or remove the game."
        )
    return found


def _split_of(label: str, at: int) -> str:
    for split in ("train", "valid", "test"):
        if split in label.lower():
            return split
    return {8: "valid", 9: "test"}.get(at % 10, "train")


def _objective(file: Path) -> str:
    """The objective in the game's .json."""
    try:
        objective = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))["objective"]
        if file.stat().st_size < 1024:
            raise ValueError("the .z8 file is too short to be a game")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The TextWorld game {file} cannot be read ({error}): it is truncated or of another "
            "kind; make it again."
        ) from error
    return str(objective).strip() or CHALLENGES["simple"][1]


_RESERVED = (
    "output",
    "seed",
    "format",
    "overview",
    "save-overview",
    "force",
    "third-party",
    "help",
)


def _arguments(make: str) -> list[str]:
    """tw-make's arguments for `kind:setting=value,flag,...`."""
    kind, _, settings = make.partition(":")
    if kind not in CHALLENGES:
        raise UserError(
            f"The environment 'textworld' cannot make {kind!r}: the option make begins "
            f"with one of {', '.join(CHALLENGES)}."
        )
    arguments = [CHALLENGES[kind][0]]
    for setting in filter(None, (s.strip() for s in settings.split(","))):
        key, has_value, value = setting.partition("=")
        if not re.fullmatch(r"[a-z][a-z-]*", key) or key in _RESERVED:
            raise UserError(
                f"The option make has {setting!r}, which is no setting of "
                f"{CHALLENGES[kind][0]}: see tw-make {CHALLENGES[kind][0]} --help."
            )
        arguments += [f"--{key}={value}" if has_value else f"--{key}"]
    return arguments


def _digest(make: str) -> str:
    return f"{make.partition(':')[0]}-{blake2b(make.encode(), digest_size=4).hexdigest()}"


def _cleaned(text: str) -> str:
    """Without the prompt, the status line, the question after the end, and runs of empty lines."""
    text = _OVER.sub("", _STATUS.sub("", text.rstrip()))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"(?m)^[ \t]+(?=\*\*\*)", "", text)).strip()
