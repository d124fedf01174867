"""A run is a folder: its settings, what it was made with, and which stages are finished.

The folder is created once, with its settings. Opening it again continues the run, with the same
settings or with more of what a run may gain (another arm, another row). One process at a time holds
its lock. A stage is a sub-folder; it is finished when its marker exists, which is written last.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leafe.core import JournalError, UserError
from leafe.core.textfile import parsed_toml, read_text
from leafe.runs._facts import facts
from leafe.runs._files import atomic_write, cut_torn, is_leftover, lock, sync, unlock, write_all
from leafe.runs._toml import to_toml

FORMAT = 1
"""Format of the folder, in its manifest. Grows when older folders can no longer be read."""
CONFIG, MANIFEST, LOCK, METRICS, MARKER = (
    "config.toml",
    "manifest.json",
    "lock",
    "metrics.jsonl",
    "done.json",
)


class RunFolder:
    """A run's folder: `open` to work in it (locked), `read` to look at it (no lock, no writes).

    Attributes:
        path: The folder.
        config: The settings of the run as plain values; keys that held None are absent.
        manifest: `format`, `seeds`, `starts` (time, versions, machine and commit of every start)
            and `envs` (the environments' `versions`).
    """

    def __init__(
        self, path: Path, config: dict[str, Any], manifest: dict[str, Any], lock_fd: int | None
    ) -> None:
        self.path = path
        self.config = config
        self.manifest = manifest
        self._lock = lock_fd
        self._metrics: int | None = None

    @classmethod
    def open(
        cls,
        path: Path | str,
        config: Mapping[str, Any],
        *,
        seeds: Mapping[str, int] | None = None,
        fresh: bool = False,
        growing: Sequence[str] = (),
        free: Sequence[str] = (),
        upgrade: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda before: before,
    ) -> RunFolder:
        """Create the run, or continue the one that is there. The lock is held until `close`.

        Args:
            path: The folder; made where it is missing.
            config: The settings, as plain values that JSON holds. They replace the stored ones.
            seeds: Recorded in the manifest of a new run.
            fresh: Delete an earlier run in this folder first.
            growing: Dotted keys of tables and lists that may have gained entries since; none may
                have been removed or changed.
            free: Keys that may have changed.
            upgrade: Rewrites the stored settings of an earlier leafe as this one writes them.

        Raises:
            UserError: The folder is in use, is no run, has another format, or other settings (the
                message names the keys).
        """
        path = Path(path)
        settings = _plain(config)
        try:
            path.mkdir(parents=True, exist_ok=True)
            _refuse_foreign(path)
            fd = _take_lock(path)
        except OSError as error:
            raise UserError(
                f"The run folder {path} cannot be made or opened: {error.strerror}."
            ) from error
        try:
            if fresh:
                _clear(path)
            if (path / MANIFEST).exists():
                manifest = _read_manifest(path)
                before = _read_config(path)
                _compare(path, _plain(upgrade(before)), settings, growing, free)
            else:
                before = None
                seeds = dict(seeds or {})
                manifest = {"format": FORMAT, "run": "leafe", "seeds": seeds, "starts": []}
            if before != settings:
                atomic_write(path / CONFIG, to_toml(settings))
            manifest["starts"].append(facts())
            _write_json(path / MANIFEST, manifest)
        except BaseException:
            unlock(fd)
            raise
        return cls(path, settings, manifest, fd)

    @classmethod
    def read(cls, path: Path | str) -> RunFolder:
        """The run as it is now, finished or not, also while another process works in it.

        Raises:
            UserError: The folder is no run, or has another format.
        """
        path = Path(path)
        if not (path / MANIFEST).is_file():
            raise UserError(
                f"{path} is not a run folder (it has no {MANIFEST}): give the folder that "
                "`leafe run` made."
            )
        manifest = _read_manifest(path)
        return cls(path, _read_config(path), manifest, None)

    @property
    def versions(self) -> dict[str, str]:
        """Versions of Python and the packages at the latest start, and of the environments as
        `ENV.PART`."""
        envs = {
            f"{name}.{part}": version
            for name, parts in self.manifest.get("envs", {}).items()
            for part, version in parts.items()
        }
        return dict(self.manifest["starts"][-1]["versions"]) | envs

    @property
    def seeds(self) -> dict[str, int]:
        """The seeds that the run was created with."""
        return dict(self.manifest["seeds"])

    def stage(self, name: str) -> Path:
        """The folder of a stage (`explore/tree`); made where the run is open for work."""
        folder = self.path / name
        if not name or not folder.resolve().is_relative_to(self.path.resolve()):
            raise ValueError(f"stage {name!r} lies outside the run folder")
        if self._lock is not None:
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def done(self, name: str) -> dict[str, Any] | None:
        """The stage's marker, as `finish` wrote it; None while the stage is not finished."""
        path = self.path / name / MARKER
        return _load_json(path) if path.is_file() else None

    def finish(self, name: str, info: Mapping[str, Any]) -> None:
        """Mark a stage as finished. All files of its folder are made durable before the marker.

        Args:
            name: The stage.
            info: What later stages and the report need to know of it, as JSON values.

        Raises:
            JournalError: The disk refuses.
        """
        self._must_be_open()
        folder = self.stage(name)
        try:
            for where, _, names in os.walk(folder):
                for file in [*names, ""]:  # the folder itself last
                    sync(Path(where, file))
        except OSError as error:
            raise JournalError(
                f"{folder} could not be made durable: {error.strerror}; free space and run again."
            ) from error
        _write_json(folder / MARKER, info)

    def record_env(self, name: str, versions: Mapping[str, str]) -> None:
        """Record an environment's `versions` in the manifest."""
        self._must_be_open()
        if versions and self.manifest.get("envs", {}).get(name) != versions:
            self.manifest.setdefault("envs", {})[name] = dict(versions)
            _write_json(self.path / MANIFEST, self.manifest)

    def metric(self, **values: Any) -> None:
        """Append one line to metrics.jsonl, with the time in seconds since 1970 as `time`."""
        self._must_be_open()
        try:
            if self._metrics is None:
                self._metrics = os.open(
                    self.path / METRICS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666
                )
                cut_torn(self._metrics)
            write_all(
                self._metrics, json.dumps({"time": round(time.time(), 3)} | values).encode() + b"\n"
            )
        except OSError as error:
            raise JournalError(
                f"{self.path / METRICS} could not be written: {error.strerror}; free space "
                "and run again."
            ) from error

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; an unfinished last line is skipped."""
        path = self.path / METRICS
        if not path.is_file():
            return []
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]

    def close(self) -> None:
        """Release the lock. May be called twice."""
        if self._metrics is not None:
            os.close(self._metrics)
            self._metrics = None
        if self._lock is not None:
            unlock(self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _must_be_open(self) -> None:
        if self._lock is None:
            raise ValueError(f"the run {self.path} is open for reading only, or closed")


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as they read back from the file."""
    return tomllib.loads(to_toml(config))


def _refuse_foreign(path: Path) -> None:
    """UserError for a folder that holds files and is no run: it is never taken over or cleared."""
    if (path / MANIFEST).is_file():
        if _load_json(path / MANIFEST).get("run") != "leafe":
            raise UserError(
                f"{path} holds a {MANIFEST} that leafe did not write: give the run another name."
            )
        return
    foreign = sorted(
        p.name for p in path.iterdir() if p.name not in (LOCK, CONFIG) and not is_leftover(p.name)
    )
    if foreign:
        raise UserError(
            f"{path} is not a run folder but holds files ({', '.join(foreign[:3])}): give "
            "a new name or an empty folder."
        )


def _take_lock(path: Path) -> int:
    fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        lock(fd, path, f"process {holder}" if holder else "another process")
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _clear(path: Path) -> None:
    if not (path / MANIFEST).is_file():
        return
    for entry in [p for p in path.iterdir() if p.name not in (LOCK, MANIFEST)]:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    # last: until then the folder is still known as a run, should this be interrupted
    (path / MANIFEST).unlink()


def _read_manifest(path: Path) -> dict[str, Any]:
    manifest = _load_json(path / MANIFEST)
    if manifest.get("run") != "leafe":
        raise UserError(f"{path} is not a run folder of leafe: give the run another name.")
    if manifest.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {manifest.get('format')}, and this leafe reads format "
            f"{FORMAT}: use the leafe that made it, or start another run."
        )
    return manifest


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return parsed_toml(read_text(path / CONFIG), str(path / CONFIG))
    except UserError as error:
        raise UserError(
            f"{str(error).removesuffix('.')}: restore it, or give the run another name."
        ) from error


def _load_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): restore it, or give the run another name."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a file that leafe wrote: give the run another name.")
    return {
        _KEYS_OF_0_1.get(str(key), str(key)): _today(entry) if key == "worlds" else entry
        for key, entry in value.items()
    }


def _today(entry: Any) -> Any:
    """A table of 0.1 under today's keys."""
    if not isinstance(entry, dict):
        return entry
    return {_KEYS_OF_0_1.get(key, key): each for key, each in entry.items()}


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(dict(value), indent=1) + "\n")


_KEYS_OF_0_1 = {"world": "env", "worlds": "envs", "world_failures": "env_failures"}
"""Keys of manifests and markers that leafe 0.1 wrote under other names."""


def _compare(
    path: Path,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    growing: Sequence[str],
    free: Sequence[str],
) -> None:
    old, new = _flat(before), _flat(now)
    changed = [
        key
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in free
    ]
    grown = {key for key in changed if any(_only_grew(before, now, key, name) for name in growing)}
    changed = [key for key in changed if key not in grown]
    if changed:
        shown = ", ".join(
            f"{key} was {old.get(key, 'absent')}, is {new.get(key, 'absent')}"
            for key in changed[:5]
        )
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise UserError(
            f"{path} holds a run with other settings ({shown}{more}): give this run "
            "another name, or start over with --fresh."
        )


def _only_grew(before: Mapping[str, Any], now: Mapping[str, Any], key: str, name: str) -> bool:
    """Whether the difference at the dotted `key` is a new entry in the table or list `name`."""
    if key != name and not key.startswith(name + "."):
        return False
    old, new = _at(before, name), _at(now, name)
    if isinstance(new, Mapping) and (old is None or isinstance(old, Mapping)):
        if key == name:  # an empty table was written as such
            return not old
        return not any(f"{key}.".startswith(f"{name}.{entry}.") for entry in (old or {}))
    return isinstance(old, list) and isinstance(new, list) and all(entry in new for entry in old)


def _at(values: Mapping[str, Any], name: str) -> Any:
    """The value at a dotted key; None where there is none."""
    found: Any = values
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, str]:
    """Dotted key to the value's JSON text: 1, 1.0 and true stay different, NaN equals itself."""
    out: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            out |= _flat(value, f"{above}{key}.") or {f"{above}{key}": "{}"}
        else:
            out[f"{above}{key}"] = json.dumps(value)
    return out
