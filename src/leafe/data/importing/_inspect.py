"""Inspect AI's logs, `.eval` (a zip with one JSON file a sample) and `.json`, read as they lie: no
inspect_ai is needed.

Format: https://inspect.aisi.org.uk/eval-logs.html; samples are `EvalSample` of inspect_ai.log
(checked against inspect_ai 0.3.285). Newer logs are zipped
with zstandard, which Python's zipfile knows from 3.14 on; before that pyarrow unpacks them.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leafe.core import UserError
from leafe.core.textfile import read_text
from leafe.data.importing._records import Bad, Logged, Problems, episode, number

MAX_SAMPLE = 256 << 20
"""Bytes of one sample, unpacked."""
VALUES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Inspect's letters: correct, partial, incorrect, no answer."""
_ZSTD = 93
_ATTACHED = "attachment://"


def read_inspect(path: Path, problems: Problems) -> Iterator[Logged]:
    """The samples of a log that have a score."""
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    for where, sample, model in _zip(path, problems) if zipped else _json(path):
        try:
            yield _sample(where, sample, model, problems)
        except Bad as bad:
            problems.leave_out(where, bad)


def _sample(where: str, sample: object, model: str, problems: Problems) -> Logged:
    if not isinstance(sample, Mapping):
        raise Bad("no object", "the sample is no object")
    if sample.get("error"):
        problems.note(
            where,
            "a sample that ended in an error",
            "the sample ended in an error; its messages are taken",
        )
    attached = sample.get("attachments")
    messages = _resolved(sample.get("messages"), attached if isinstance(attached, Mapping) else {})
    meta = sample.get("metadata")
    meta = meta if isinstance(meta, Mapping) else {}
    about: dict[str, Any] = {"model": model} if model else {}
    if isinstance(meta.get("payload"), Mapping):
        about |= {"payload": meta["payload"], "instruction": str(meta.get("instruction", ""))}
    name = meta.get("task") if isinstance(meta.get("task"), str) else sample.get("id")
    return episode(
        where,
        messages,
        problems,
        task=None if name is None else str(name),
        reward=_score(sample.get("scores")),
        **about,
    )


def _score(scores: object) -> float | None:
    """The first score that is a number, true or false, or one of Inspect's letters."""
    for score in scores.values() if isinstance(scores, Mapping) else ():
        value = score.get("value") if isinstance(score, Mapping) else score
        if isinstance(value, str) and value in VALUES:
            return VALUES[value]
        if isinstance(value, int | float):
            return number(value, "its score")
    return None


def _resolved(value: Any, attached: Mapping[str, Any]) -> Any:
    """Long texts are kept once, beside the messages."""
    if isinstance(value, str):
        return (
            attached.get(value.removeprefix(_ATTACHED), value)
            if value.startswith(_ATTACHED)
            else value
        )
    if isinstance(value, Mapping):
        return {key: _resolved(each, attached) for key, each in value.items()}
    return [_resolved(each, attached) for each in value] if isinstance(value, Sequence) else value


def _json(path: Path) -> Iterator[tuple[str, object, str]]:
    try:
        log = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is no Inspect log, or a part of one: it is not JSON ({str(error)[:120]})."
        ) from error
    if not isinstance(log, Mapping) or not isinstance(log.get("eval"), Mapping):
        raise UserError(f'{path} is no Inspect log: it has no object "eval".')
    samples = log.get("samples")
    for nth, sample in enumerate(samples if isinstance(samples, Sequence) else ()):
        yield f"{path.name}, sample {nth + 1}", sample, _model(log)


def _zip(path: Path, problems: Problems) -> Iterator[tuple[str, object, str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            header = infos.get("header.json") or infos.get("_journal/start.json")
            if header is None:
                raise UserError(f"{path} is a zip file and no Inspect log: it has no header.json.")
            try:
                head = json.loads(_member(path, archive, header))
            except Bad as bad:
                raise UserError(f"{path}: {header.filename}: {bad}.") from bad
            for name in infos:
                if name.startswith("samples/") and name.endswith(".json"):
                    where = f"{path.name}, {name}"
                    try:
                        yield (
                            where,
                            json.loads(_member(path, archive, infos[name])),
                            _model(head if isinstance(head, Mapping) else {}),
                        )
                    except Bad as bad:
                        problems.leave_out(where, bad)
                    except (ValueError, RecursionError, zipfile.BadZipFile) as error:
                        problems.leave_out(
                            where, Bad("a damaged sample", f"it is damaged ({str(error)[:120]})")
                        )
    except (zipfile.BadZipFile, ValueError) as error:
        raise UserError(
            f"{path} is no Inspect log, or a part of one ({str(error)[:120]}): copy it again."
        ) from error


def _member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > MAX_SAMPLE:
        raise Bad("a sample that is too long", f"it is longer than {MAX_SAMPLE >> 20} MiB")
    try:
        with archive.open(info) as file:
            return file.read(MAX_SAMPLE)
    except NotImplementedError:
        if info.compress_type != _ZSTD:
            raise Bad(
                "packed in an unknown way",
                f"it is packed by method {info.compress_type}, which is not known here",
            ) from None
    try:
        import pyarrow
    except ModuleNotFoundError as error:
        raise UserError(
            f"{path} is zipped with zstandard: pip install pyarrow, or write it as JSON by "
            "`inspect log convert --to json`."
        ) from error
    with path.open("rb") as file:
        file.seek(
            info.header_offset + 26
            # of the local header: the lengths of name and extra field stand at 26 and 28, then both
            # of
            # them
        )
        lengths = file.read(4)
        file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), 1)
        packed = file.read(info.compress_size)
    try:
        return bytes(
            pyarrow.input_stream(pyarrow.BufferReader(packed), compression="zstd").read(
                info.file_size
            )
        )
    except OSError as error:
        raise Bad("a damaged sample", f"it is damaged ({str(error)[:120]})") from error


def _model(log: Mapping[str, Any]) -> str:
    spec = log.get("eval")
    model = spec.get("model") if isinstance(spec, Mapping) else None
    return model if isinstance(model, str) else ""
