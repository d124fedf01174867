"""Reads levels in Boxoban's text format.

`#` wall, `@` player, `$` box, `.` goal, `*` box on goal, `+` player on goal, and a line `; N`
before each level. An error names file and line.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

from leafe.core import UserError
from leafe.core.textfile import decoded
from leafe.envs.sokoban._board import inside


def level_files(root: Path, difficulty: str) -> list[tuple[Path, str]]:
    """The level files and their labels: the path below the folder, with `-` for `/` and without the
    suffix. Of a folder only the files with `difficulty` in the label, unless it is 'any'."""
    if root.is_file():
        return [(root, _label(root.name))]
    if not root.is_dir():
        raise UserError(
            f"The environment 'sokoban' finds no level file or folder at {root}: correct "
            "the option levels."
        )
    files = sorted(
        p for p in root.rglob("*") if p.is_file() and p.name.endswith((".txt", ".txt.gz"))
    )
    labelled = [(p, _label(p.relative_to(root).as_posix())) for p in files]
    chosen = [(p, label) for p, label in labelled if difficulty == "any" or difficulty in label]
    if not chosen:
        raise UserError(
            f"The folder {root} holds no level file (*.txt, *.txt.gz) with {difficulty!r} "
            "in its name: set levels or difficulty."
        )
    return chosen


def _label(path: str) -> str:
    return path.removesuffix(".gz").removesuffix(".txt").replace("/", "-")


def split_of(label: str, number: int) -> str:
    """The split of level `number` of the file `label`, as `Sokoban` documents it."""
    if "train" in label:
        return "train"
    if "valid" in label:
        return "valid" if number % 2 == 0 else "test"
    if "test" in label:
        return "test"
    return {8: "valid", 9: "test"}.get(number % 10, "train")


def read_levels(path: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(number, rows) of each level; UserError with file and line for a line that is wrong."""
    try:
        raw = path.read_bytes()
        text = decoded(
            gzip.decompress(raw) if path.suffix == ".gz" else raw, f"The level file {path}"
        )
    except (OSError, EOFError) as error:  # BadGzipFile is an OSError
        raise UserError(f"The level file {path} cannot be read: {error}.") from error
    number, first_line, rows = -1, 0, list[str]()
    for at, line in enumerate([*text.splitlines(), ""], start=1):
        if line.startswith(";") or not line.strip():
            if rows:
                _check(rows, path, first_line)
                yield number, tuple(rows)
                rows, number = [], number + 1
            if line.startswith(";"):
                title = line[1:].strip()
                if not title.isdecimal():
                    raise UserError(
                        f"{path}, line {at}: a level begins with '; NUMBER', not {line!r}."
                    )
                number = int(title)
        else:
            bad = set(line) - set("#@$.*+ ")
            if bad:
                raise UserError(
                    f"{path}, line {at}: {min(bad)!r} is no symbol of a Sokoban level (# @ "
                    "$ . * + and space)."
                )
            if not rows:
                first_line, number = at, max(number, 0)
            rows.append(line)


def _check(rows: Sequence[str], path: Path, line: int) -> None:
    text = "".join(rows)
    players, boxes, goals = (sum(text.count(c) for c in symbols) for symbols in ("@+", "$*", ".*+"))
    if players != 1:
        wrong = f"{players} players"
    elif boxes != goals:
        wrong = f"{boxes} boxes for {goals} goals"
    elif "$" not in text:
        wrong = "no box off its goal"
    elif inside(rows) is None:
        wrong = "a gap in the wall around it"
    else:
        return
    raise UserError(
        f"{path}, line {line}: the level that begins here has {wrong}: correct or remove it."
    )
