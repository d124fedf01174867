"""Every format says the same texts, marks the one answer that bears the loss, and counts what it
cannot say."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import Message, UserError
from leafe.data import TARGETS, Source, export
from leafe.distill import PARTS, Dataset, Sample, build, preset
from tests.data.importing.logs import ABOUT
from tests.distill.toy import PROMPTS, forest

pytest.importorskip("datasets")
pq = pytest.importorskip("pyarrow.parquet")


def source(**config: Any) -> Source:
    data = build(forest(6), PROMPTS, preset("leafe+", **config), 0)
    learn, valid = data.split(0.3, 0)
    return Source(ABOUT, learn, valid)


def pairs() -> Source:
    learn, valid = build(forest(6), PROMPTS, preset("dpo", counterfactuals="all"), 0).split(0.3, 0)
    return Source(ABOUT, learn, valid)


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / name
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def said(row: Mapping[str, Any]) -> tuple[tuple[tuple[str, str], ...], str, str | None]:
    """(prompt, the answer that is learnt, the rejected one) of a row of any format."""
    if "conversations" in row:
        roles = {"human": "user", "gpt": "assistant"}
        talk = [("system", row["system"])] if row["system"] else []
        talk += [(roles[m["from"]], m["value"]) for m in row["conversations"]]
        if "chosen" in row:
            return tuple(talk), row["chosen"]["value"], row["rejected"]["value"]
        return tuple(talk[:-1]), talk[-1][1], None
    if "messages" in row:
        flag = "train" if "train" in row["messages"][0] else "trainable"
        assert [m[flag] for m in row["messages"]] == [False] * (len(row["messages"]) - 1) + [True]
        talk = [(m["role"], m["content"]) for m in row["messages"]]
        return tuple(talk[:-1]), talk[-1][1], None
    talk = [(m["role"], m["content"]) for m in row["prompt"]]
    if "chosen" in row:
        return tuple(talk), row["chosen"][0]["content"], row["rejected"][0]["content"]
    return tuple(talk), row["completion"][0]["content"], None


def wanted(data: Dataset | None, pairs: bool) -> Counter[Any]:
    samples = data.samples if data else ()
    return Counter(
        (
            tuple((m.role, m.content) for m in s.messages),
            s.answer.content,
            s.rejected.content if s.rejected else None,
        )
        for s in samples
        if (s.rejected is not None if pairs else s.part != "anchor")
    )


def _truncated(data: Dataset) -> Dataset:
    """Every third answer was cut at its limit of tokens; of pairs, one time the chosen and one time
    the rejected one."""
    samples = list(data.samples)
    for nth in range(0, len(samples), 3):
        s = samples[nth]
        part = "rejected" if s.rejected is not None and nth % 2 else "answer"
        samples[nth] = replace(s, **{part: replace(getattr(s, part), cut=True)})
    return replace(data, samples=tuple(samples))


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "chat"])
def test_a_cut_answer_is_in_no_export(target: Any, tmp_path: Path) -> None:
    whole = pairs() if target == "dpo" else source()
    assert whole.valid is not None
    given_ = replace(whole, data=_truncated(whole.data), valid=_truncated(whole.valid))
    done = export(given_, target, tmp_path / "out")
    files = [name for name in done.files if name.endswith((".parquet", ".jsonl"))]
    found = Counter(said(row) for name in files for row in rows(done.folder, name))
    kept = Counter[Any]()
    cut = 0
    for data in (given_.data, given_.valid):
        assert data is not None
        sure = replace(data, samples=tuple(s for s in data.samples if not s.cut))
        kept += wanted(sure, target == "dpo")
        cut += sum(s.cut for s in data.samples if s.part != "anchor")
    assert found.keys() == kept.keys()
    assert [n for reason, n in done.left_out.items() if "was cut" in reason] == [cut]
    assert "was cut at its limit of tokens" in (done.folder / "README.md").read_text()


@pytest.mark.parametrize("target", [t for t in TARGETS if t != "chat"])
def test_the_texts_are_the_samples(target: Any, tmp_path: Path) -> None:
    given_ = pairs() if target == "dpo" else source()
    done = export(given_, target, tmp_path / "out")
    for split, data in (("train", given_.data), ("validation", given_.valid)):
        names = [name for name in done.files if ("validation" in name) == (split == "validation")]
        for kind in {Path(name).suffix for name in names}:
            found = [
                row for name in names if name.endswith(kind) for row in rows(done.folder, name)
            ]
            assert Counter(map(said, found)) == wanted(data, target == "dpo")
    assert all(len(rows(done.folder, name)) == number for name, number in done.files.items())
    anchors = sum(s.part == "anchor" for d in (given_.data, given_.valid) if d for s in d.samples)
    assert sum(
        number for reason, number in done.left_out.items() if reason.startswith("anchor: its loss")
    ) == (0 if target == "dpo" else anchors)
    assert target == "dpo" or anchors


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=12)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Any messages that end with the user's; often in turn, and sometimes not."""
    head = [Message("system", draw(words))] if draw(st.booleans()) else []
    if draw(st.booleans()):
        talk = [
            Message(role, draw(words))
            for _ in range(draw(st.integers(0, 2)))
            for role in ("user", "assistant")
        ]  # type: ignore[arg-type]
    else:
        talk = [
            Message(draw(st.sampled_from(["user", "assistant"])), draw(words))
            for _ in range(draw(st.integers(0, 3)))
        ]
    return Sample(
        draw(st.sampled_from(PARTS)),
        draw(words),
        draw(words),
        (*head, *talk, Message("user", draw(words))),
        Message("assistant", draw(words)),
        weight=draw(st.sampled_from([1.0, 0.5])),
        note=draw(words),
        rejected=draw(st.none() | st.builds(Message, st.just("assistant"), words)),
    )


def in_turn(sample: Sample) -> bool:
    """The user, the assistant, ..., the user; before them one system message or none."""
    signs = "".join(m.role[0] for m in (*sample.messages, sample.answer))
    return re.fullmatch(r"s?(ua)+", signs) is not None


@given(
    found=st.lists(samples(), min_size=1, max_size=8),
    target=st.sampled_from([t for t in TARGETS if t != "chat"]),
)
@settings(max_examples=40)
def test_rows_and_what_is_left_out_are_all_samples(
    found: list[Sample], target: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("any") / "out"
    able = [
        s
        for s in found
        if (s.rejected is not None if target == "dpo" else s.part != "anchor")
        and (target != "sharegpt" or in_turn(s))
    ]
    if not able:
        with pytest.raises(UserError, match="nothing to export"):
            export(Source(ABOUT, Dataset(tuple(found))), target, out)
        assert not out.exists()
        return
    done = export(Source(ABOUT, Dataset(tuple(found))), target, out)
    assert sum(
        done.files[name]
        for name in done.files
        if name.endswith(".parquet" if target not in ("sharegpt", "axolotl") else ".jsonl")
    ) == len(able)
    ending = ".jsonl" if target in ("sharegpt", "axolotl") else ".parquet"
    written = sum(number for name, number in done.files.items() if name.endswith(ending))
    assert written + sum(done.left_out.values()) == len(found)
    mine = Counter(
        (p, a, r if target == "dpo" else None)
        for p, a, r in wanted(Dataset(tuple(found)), target == "dpo").elements()
    )
    theirs = Counter(
        said(row) for name in done.files if name.endswith(ending) for row in rows(done.folder, name)
    )
    if target == "sharegpt":  # an empty system message and none are one there
        bare = Counter(
            (tuple(m for m in p if m != ("system", "")), a, r) for p, a, r in mine.elements()
        )
        assert theirs <= bare
        assert theirs.total() == written
    else:
        assert theirs == mine


def test_weights_and_soft_targets_are_said(tmp_path: Path) -> None:
    soft = build(
        forest(6),
        PROMPTS,
        preset("leafe+", soft_targets=True, outcome_weights={"improved": 0.5}),
        0,
    )
    done = export(Source(ABOUT, soft), "axolotl", tmp_path / "out")
    weighted = sum(s.weight != 1 for s in soft.samples if s.part != "anchor")
    assert weighted
    assert sorted(done.changed.values()) == sorted(
        [weighted, sum(s.teacher is not None for s in soft.part("counterfactual"))]
    )
    card = (done.folder / "README.md").read_text("utf-8")
    assert all(f"| {number} |" in card for number in done.changed.values())


def test_llama_factorys_description_fits_its_files(tmp_path: Path) -> None:
    """https://llamafactory.readthedocs.io/en/latest/getting_started/data_preparation.html"""
    for target, given_ in (("sharegpt", source()), ("dpo", pairs())):
        done = export(given_, target, tmp_path / target)  # type: ignore[arg-type]
        info = json.loads((done.folder / "dataset_info.json").read_text("utf-8"))
        assert {entry["file_name"] for entry in info.values()} == {
            name for name in done.files if name.endswith(".jsonl")
        }
        for entry in info.values():
            row = rows(done.folder, entry["file_name"])[0]
            assert entry["formatting"] == "sharegpt"
            assert entry.get("ranking", False) == (target == "dpo")
            assert set(entry["columns"].values()) <= row.keys()
            assert set(entry["tags"]) == {"role_tag", "content_tag", "user_tag", "assistant_tag"}
            talk = row["conversations"]
            assert [m["from"] for m in talk] == ["human", "gpt"] * (len(talk) // 2) + ["human"] * (
                len(talk) % 2
            )
            assert len(talk) % 2 == (1 if target == "dpo" else 0)
        assert (
            "leafe_preference" in info
            or {"leafe_rehearsal", "leafe_counterfactual_validation"} <= info.keys()
        )


def test_axolotls_lines_fit_its_files(tmp_path: Path) -> None:
    """https://docs.axolotl.ai/docs/dataset-formats/conversation.html, "using fine-grained control
    over tokens and turns to train"."""
    done = export(source(), "axolotl", tmp_path / "out")
    config = yaml.safe_load((done.folder / "axolotl.yaml").read_text("utf-8"))
    assert {entry["path"] for entry in config["datasets"] + config["test_datasets"]} == set(
        done.files
    )
    for entry in config["datasets"] + config["test_datasets"]:
        assert (entry["type"], entry["roles_to_train"], entry["message_field_training"]) == (
            "chat_template",
            [],
            "train",
        )
        assert all(
            entry["message_field_training"] in m
            for row in rows(done.folder, entry["path"])
            for m in row[entry["field_messages"]]
        )


@pytest.mark.parametrize("why", ["full", "file", "parent"])
def test_a_place_that_cannot_be_written(why: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if why == "full":
        out.mkdir()
        (out / "mine.txt").write_text("keep me")
    elif why == "file":
        out.write_text("keep me")
    else:
        (tmp_path / "file").write_text("keep me")
        out = tmp_path / "file" / "out"
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with pytest.raises(UserError, match="out"):
        export(source(), "axolotl", out)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_nothing_is_left_where_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("leafe.data.exporting._write.card", fails)
    with pytest.raises(UserError, match="No space left"):
        export(source(), "sharegpt", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_nothing_to_export(tmp_path: Path) -> None:
    anchors = Dataset(build(forest(6), PROMPTS, preset("leafe+"), 0).part("anchor"))
    for target in ("trl", "sharegpt", "axolotl", "verl", "dpo"):
        with pytest.raises(UserError, match="nothing to export"):
            export(Source(ABOUT, anchors), target, tmp_path / "out")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no export to 'csv'"):
        export(Source(ABOUT, anchors), "csv", tmp_path / "out")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
