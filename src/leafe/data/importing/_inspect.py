"""Reads Inspect AI's logs, `.eval` (a zip with one JSON file per sample) and `.json`, without
inspect_ai.

Format: https://inspect.aisi.org.uk/eval-logs.html; samples are `EvalSample` of inspect_ai.log
(checked against inspect_ai 0.3.285). Newer logs are compressed with zstandard, which Python's
zipfile supports from 3.14 on; before that pyarrow decompresses them.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leafe.core import UserError
from leafe.core.textfile import read_text
from leafe.data.importing._records import InvalidRecord, LoggedEpisode, Problems, episode, number

MAX_SAMPLE = 256 << 20
"""Bytes of one sample, decompressed."""
VALUES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Inspect's letters: correct, partial, incorrect, no answer."""
_ZSTD = 93
_ATTACHMENT = "attachment://"


def read_inspect(path: Path, problems: Problems) -> Iterator[LoggedEpisode]:
    """The scored samples of a log, in order; the others are counted in `problems`."""
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    for where, sample, model in _zip_samples(path, problems) if zipped else _json_samples(path):
        with problems.skipping(where):
            yield _sample(where, sample, model, problems)


def _sample(where: str, sample: object, model: str, problems: Problems) -> LoggedEpisode:
    if not isinstance(sample, Mapping):
        raise InvalidRecord("no object", "the sample is no object")
    if sample.get("error"):
        problems.note(
            where,
            "a sample that ended in an error",
            "the sample ended in an error; its messages are taken",
        )
    attachments = sample.get("attachments")
    messages = _resolve_attachments(
        sample.get("messages"), attachments if isinstance(attachments, Mapping) else {}
    )
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


def _resolve_attachments(value: Any, attachments: Mapping[str, Any]) -> Any:
    """Replace references to attachments, which hold long texts once per sample."""
    if isinstance(value, str):
        return (
            attachments.get(value.removeprefix(_ATTACHMENT), value)
            if value.startswith(_ATTACHMENT)
            else value
        )
    if isinstance(value, Mapping):
        return {key: _resolve_attachments(each, attachments) for key, each in value.items()}
    return (
        [_resolve_attachments(each, attachments) for each in value]
        if isinstance(value, Sequence)
        else value
    )


def _json_samples(path: Path) -> Iterator[tuple[str, object, str]]:
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
        yield f"{path.name}, sample {nth + 1}", sample, _model_of(log)


def _zip_samples(path: Path, problems: Problems) -> Iterator[tuple[str, object, str]]:
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist()}
            header = infos.get("header.json") or infos.get("_journal/start.json")
            if header is None:
                raise UserError(f"{path} is a zip file and no Inspect log: it has no header.json.")
            try:
                head = json.loads(_read_member(path, archive, header))
            except InvalidRecord as bad:
                raise UserError(f"{path}: {header.filename}: {bad}.") from bad
            model = _model_of(head if isinstance(head, Mapping) else {})
            for name, info in infos.items():
                if name.startswith("samples/") and name.endswith(".json"):
                    where = f"{path.name}, {name}"
                    with problems.skipping(where):
                        yield where, _read_sample(path, archive, info), model
    except (zipfile.BadZipFile, ValueError) as error:
        raise UserError(
            f"{path} is no Inspect log, or a part of one ({str(error)[:120]}): copy it again."
        ) from error


def _read_sample(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> object:
    try:
        return json.loads(_read_member(path, archive, info))
    except InvalidRecord:
        raise
    except (ValueError, RecursionError, zipfile.BadZipFile) as error:
        reason = f"it is damaged ({str(error)[:120]})"
        raise InvalidRecord("a damaged sample", reason) from error


def _read_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > MAX_SAMPLE:
        raise InvalidRecord(
            "a sample that is too long", f"it is longer than {MAX_SAMPLE >> 20} MiB"
        )
    try:
        with archive.open(info) as file:
            return file.read(MAX_SAMPLE)
    except NotImplementedError:
        if info.compress_type != _ZSTD:
            raise InvalidRecord(
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
        # local header: the lengths of name and extra field at 26 and 28, then name and extra field
        file.seek(info.header_offset + 26)
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
        raise InvalidRecord("a damaged sample", f"it is damaged ({str(error)[:120]})") from error


def _model_of(log: Mapping[str, Any]) -> str:
    spec = log.get("eval")
    model = spec.get("model") if isinstance(spec, Mapping) else None
    return model if isinstance(model, str) else ""
