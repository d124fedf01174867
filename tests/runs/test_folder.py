"""A run folder goes on with the same settings and refuses everything else in one sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leafe.core import JournalError, UserError
from leafe.runs import RunFolder, atomic_write, to_toml

CONFIG = {
    "name": "demo",
    "seed": 3,
    "explore": {"max_depth": 6, "temperature": 1.0},
    "arms": [{"preset": "leafe+"}],
    "model": None,
}
text = st.text(max_size=6)
values = st.recursive(
    st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(text, inner | st.none(), max_size=3)
    ),
    max_leaves=8,
)


def without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_none(v) for k, v in value.items() if v is not None}
    return [without_none(v) for v in value] if isinstance(value, list) else value


@given(st.dictionaries(text, values | st.none(), max_size=4))
def test_settings_survive_toml(config: dict[str, Any]) -> None:
    again, expected = tomllib.loads(to_toml(config)), without_none(config)
    assert again == expected
    assert json.dumps(again, sort_keys=True) == json.dumps(
        expected, sort_keys=True
    )  # 1, 1.0 and true stay apart, and -0.0 from 0.0


def test_toml_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(TypeError, match="cannot hold"):
        to_toml({"a": object()})
    with pytest.raises(TypeError, match="cannot hold None"):
        to_toml({"a": [None]})


def test_a_run_is_made_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "demo"
    with RunFolder.open(path, CONFIG, seeds={"run": 3}) as run:
        assert run.done("stage-1-explore") is None
        (run.stage("stage-1-explore") / "x").write_text("x")
        run.finish("stage-1-explore", {"solved": 0.5})
        run.metric(loss=1.5, step=1)
    with RunFolder.open(path, CONFIG) as run:
        assert run.done("stage-1-explore") == {"solved": 0.5}
        assert run.done("eval/base") is None
        run.metric(loss=0.5, step=2)
        assert [(m["loss"], m["step"]) for m in run.metrics()] == [(1.5, 1), (0.5, 2)]
        assert run.seeds == {"run": 3}
        assert len(run.manifest["starts"]) == 2
        assert run.versions["leafe"]
        assert run.versions["python"].split(".")[:2] == [str(n) for n in sys.version_info[:2]]
    assert tomllib.loads((path / "config.toml").read_text()) == without_none(CONFIG)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 4}, "seed was 3, is 4"),
        ({"explore": {"max_depth": 6, "temperature": 1}}, r"explore\.temperature was 1\.0, is 1"),
        ({"extra": {}}, "extra was absent, is {}"),
        ({"model": "x"}, 'model was absent, is "x"'),
        ({"arms": []}, "arms was"),
    ],
)
def test_other_settings_are_refused_by_their_keys(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    RunFolder.open(tmp_path, CONFIG).close()
    with pytest.raises(UserError, match=words) as refused:
        RunFolder.open(tmp_path, CONFIG | changes)
    assert "--fresh" in str(refused.value)
    RunFolder.open(tmp_path, CONFIG).close()


def test_fresh_starts_over_but_only_on_a_run(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "run", CONFIG) as run:
        (run.stage("eval/base") / "x").write_text("x")
        run.finish("eval/base", {})
    with RunFolder.open(tmp_path / "run", CONFIG | {"seed": 4}, fresh=True) as run:
        assert run.done("eval/base") is None
        assert run.config["seed"] == 4
        assert not (run.path / "eval").exists()
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_text("cat")
    for fresh in (False, True):
        with pytest.raises(UserError, match=r"not a run folder but holds files \(cat\.jpg\)"):
            RunFolder.open(other, CONFIG, fresh=fresh)
    (other / "manifest.json").write_text('{"name": "a browser extension"}')
    for fresh in (False, True):
        with pytest.raises(UserError, match="leafe did not write"):
            RunFolder.open(other, CONFIG, fresh=fresh)
    assert sorted(p.name for p in other.iterdir()) == ["cat.jpg", "manifest.json"]


def test_a_folder_of_another_format_is_refused(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, CONFIG).close()
    manifest = json.loads((tmp_path / "manifest.json").read_text()) | {"format": 99}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for attempt in (lambda: RunFolder.open(tmp_path, CONFIG), lambda: RunFolder.read(tmp_path)):
        with pytest.raises(UserError, match="has format 99"):
            attempt()
    RunFolder.open(tmp_path, CONFIG, fresh=True).close()
    assert RunFolder.read(tmp_path).manifest["format"] == 1


def test_damaged_small_files_are_named(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, CONFIG).close()
    (tmp_path / "config.toml").write_text("name = ")
    with pytest.raises(UserError, match=r"config\.toml cannot be read"):
        RunFolder.open(tmp_path, CONFIG)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json cannot be read"):
        RunFolder.read(tmp_path)


def test_a_run_that_died_while_it_was_made_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("77")
    (tmp_path / "config.toml").write_text("half = ")
    (tmp_path / ".manifest.json.tmp").write_text("{")
    with RunFolder.open(tmp_path, CONFIG) as run:
        assert run.config == without_none(CONFIG)


def test_reading_needs_no_lock_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        RunFolder.read(tmp_path)
    with RunFolder.open(tmp_path, CONFIG) as run:
        run.metric(loss=1.0)
        seen = RunFolder.read(tmp_path)
        before = sorted(p.name for p in tmp_path.iterdir())
        assert seen.config == run.config
        assert len(seen.metrics()) == 1
        assert not seen.stage("eval/base").exists()
        for write in (lambda: seen.metric(a=1), lambda: seen.finish("eval/base", {})):
            with pytest.raises(ValueError, match="reading only"):
                write()
        assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["", "../elsewhere", "/tmp", "a/../../b"])
def test_a_stage_lies_inside(tmp_path: Path, name: str) -> None:
    with (
        RunFolder.open(tmp_path / "run", CONFIG) as run,
        pytest.raises(ValueError, match="outside"),
    ):
        run.stage(name)


def test_a_torn_metric_is_skipped_and_cut(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, CONFIG) as run:
        run.metric(step=1)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": ')
    assert [m["step"] for m in RunFolder.read(tmp_path).metrics()] == [1]
    with RunFolder.open(tmp_path, CONFIG) as run:
        run.metric(step=2)
        assert [m["step"] for m in run.metrics()] == [1, 2]


def test_a_second_process_is_refused_and_told_which_has_it(tmp_path: Path) -> None:
    code = (
        "import sys; from leafe.runs import RunFolder; run = "
        f"RunFolder.open({str(tmp_path)!r}, {{}}); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
            RunFolder.open(tmp_path, {})
        holder.kill()
        holder.wait()
    RunFolder.open(tmp_path, {}).close()  # the lock ended with its process


def test_an_atomic_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    atomic_write(path, "old é\n")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(JournalError, match="No space left on device"):
            atomic_write(path, "new")
    assert path.read_text("utf-8") == "old é\n"
    atomic_write(path, "new")
    assert path.read_text() == "new"


def test_a_place_that_cannot_be_made_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made or opened"):
        RunFolder.open(tmp_path / "file" / "run", {})


def test_a_run_may_get_more_of_what_it_may_have_more_of(tmp_path: Path) -> None:
    before = {
        "seed": 1,
        "arms": {"a": {"beta": 0.5}, "a.b": {"beta": 2}},
        "strategies": ["tree"],
        "evaluate": {"k": [1], "extras": {}},
    }
    more = {"growing": ("arms", "evaluate.extras", "strategies"), "free": ("evaluate.k",)}
    RunFolder.open(tmp_path, before).close()
    now = {
        "seed": 1,
        "arms": {"a": {"beta": 0.5}, "a.b": {"beta": 2}, "c": {"beta": 1}},
        "strategies": ["refine", "tree"],
        "evaluate": {"k": [8], "extras": {"hot": {"temperature": 1.3}}},
    }
    with pytest.raises(UserError, match="other settings"):  # unless the caller allows it
        RunFolder.open(tmp_path, now)
    RunFolder.open(tmp_path, now, **more).close()
    assert RunFolder.read(tmp_path).config == now
    for change, named in (
        ({"arms": now["arms"] | {"a": {"beta": 1.0}}}, "arms.a.beta"),
        (
            {"arms": now["arms"] | {"a": {"beta": 0.5, "clip": 1}}},
            "arms.a.clip",
        ),  # a setting more changes what an arm is
        ({"arms": {"a": {"beta": 0.5}}}, "arms.a.b.beta"),
        ({"strategies": ["tree"]}, "strategies"),
        ({"seed": 2}, "seed"),
        ({"evaluate": {"k": [8], "extras": {}}}, "evaluate.extras"),
        (
            {"evaluate": {"k": [8], "extras": now["evaluate"]["extras"], "samples": 3}},
            "evaluate.samples",
        ),
    ):
        with pytest.raises(UserError, match=re.escape(named)):
            RunFolder.open(tmp_path, now | change, **more)
    assert RunFolder.read(tmp_path).config == now
