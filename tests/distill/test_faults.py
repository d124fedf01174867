"""What can go wrong while weights are trained: each has a word of its own, and nothing that was
done is lost."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leafe.core import UserError
from leafe.distill import Dataset, build, preset, train
from tests.distill.toy import PROMPTS, chat, forest
from tests.trees import make_tree

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

SMALL: dict[str, Any] = {
    "rehearsal_batch_size": 4,
    "counterfactual_batch_size": 3,
    "anchor_batch_size": 3,
    "reflection_batch_size": 2,
    "learning_rate": 3e-3,
    "max_steps": 8,
}


def weights(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def rows(path: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


# memory


def short(
    monkeypatch: pytest.MonkeyPatch, when: Callable[[int, Any], bool], error: BaseException
) -> list[int]:
    """Let forward passes fail in training where `when(number of the pass, piece)`; the tokens of
    those that did not, as they come."""
    from leafe.distill import _train

    real, sizes, calls = _train.part_losses, [], [0]

    def losses(model: Any, start: Any, piece: Any) -> Any:
        if torch.is_grad_enabled():
            calls[0] += 1
            if when(calls[0], piece):
                raise error
            sizes.append(piece.tokens)
        return real(model, start, piece)

    monkeypatch.setattr(_train, "part_losses", losses)
    return sizes


SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate "
        "memory: you tried to allocate 9 bytes."
    ),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."),
]


@pytest.mark.slow
@pytest.mark.parametrize("error", SHORTAGES, ids=["cuda", "linux", "windows"])
def test_where_memory_ends_passes_are_halved_once_and_the_step_is_the_same(
    data: Dataset,
    model_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    config = preset("leafe+", **SMALL, micro_batch_tokens=200)
    whole = train(model_path, tmp_path / "whole", data, None, config)
    sizes = short(monkeypatch, lambda call, piece: call > 4 and piece.tokens > 110, error)
    result = train(model_path, tmp_path / "short", data, None, config)
    assert max(sizes[4:]) <= 110 < max(sizes[:4])
    (note,) = (n for n in result.notes if "Memory" in n)
    assert f"({str(error).splitlines()[0][:30]}" in note
    assert [r["out_of_memory"] for r in rows(tmp_path / "short") if "out_of_memory" in r] == [1]
    assert [r["loss"] for r in rows(tmp_path / "short")] == pytest.approx(
        [r["loss"] for r in rows(tmp_path / "whole")], rel=1e-4
    )
    assert result.loss == pytest.approx(whole.loss, rel=1e-4)


def test_where_memory_ends_twice_the_user_reads_what_to_lower(
    data: Dataset, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, lambda call, piece: call > 6, SHORTAGES[0])
    with pytest.raises(
        UserError,
        match=(
            r"does not suffice at step \d+ .*CUDA out of memory.*set "
            r"distill.micro_batch_tokens below \d+.*gradient_check"
        ),
    ):
        train(model_path, tmp_path, data, None, preset("leafe+", **SMALL, save_steps=1))
    monkeypatch.undo()
    # with smaller passes, which are no other training, it goes on from where it was
    steps: list[int] = []
    train(
        model_path,
        tmp_path,
        data,
        None,
        preset("leafe+", **SMALL, save_steps=1, micro_batch_tokens=60),
        lambda row: steps.append(row["step"]),
    )
    assert steps[0] > 1
    assert steps[-1] == 8


def test_memory_that_ends_elsewhere_and_other_errors_are_told_apart(
    data: Dataset, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from leafe.distill import _train

    short(
        monkeypatch,
        lambda call, piece: call == 3,
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    )
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(model_path, tmp_path / "a", data, None, preset("leafe+", **SMALL))
    monkeypatch.undo()

    def refuse(*_: Any, **__: Any) -> Any:
        raise SHORTAGES[1]

    monkeypatch.setattr(_train.Parallel, "prepare", refuse)
    with pytest.raises(
        UserError, match=r"weights, their gradients and the optimiser's moments.*lora"
    ):
        train(model_path, tmp_path / "b", data, None, preset("leafe+", **SMALL))


# losses that are no numbers


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_with_the_batch_saved(
    data: Dataset, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    from leafe.distill import _train

    real = _train.part_losses
    poison = chat().tokenizer.convert_tokens_to_ids("t3")  # a word of one task

    def losses(model: Any, start: Any, piece: Any) -> Any:
        out = real(model, start, piece)
        return (
            out.masked_fill(torch.bincount(piece.part_N, minlength=4) > 0, value)
            if bool((piece.rows.ids_BT == poison).any())
            else out
        )

    monkeypatch.setattr(_train, "part_losses", losses)
    with pytest.raises(
        UserError, match=r"The loss is (nan|inf) .*lower learning_rate.*bad-batch\.json"
    ) as caught:
        train(model_path, tmp_path, data, None, preset("leafe+", **SMALL | {"max_steps": 40}))
    path = tmp_path / "bad-batch.json"
    assert str(path) in str(caught.value)
    bad = json.loads(path.read_text(encoding="utf-8"))
    assert bad["loss"] == str(value)
    assert bad["weights_finite"] is True
    assert bad["step"] == len(rows(tmp_path)) + 1
    for one in bad["sequences"]:
        assert (one["loss"] == str(value)) == (poison in one["ids"])
        assert one["part"] in ("rehearsal", "counterfactual", "anchor", "reflection")
        assert all(
            one["ids"][s["start"] : s["end"]][-1] == chat().end_of_turn for s in one["spans"]
        )
    assert {one["task_id"] for one in bad["sequences"] if one["loss"] == str(value)} == {"t3"}


# data


def test_long_samples_are_skipped_or_cut_and_either_is_told(
    model_path: Path, tmp_path: Path
) -> None:
    data = build(forest(4), PROMPTS, preset("leafe+"), 0)
    lengths = sorted(len(chat().prompt(s.messages)) for s in data.part("rehearsal"))
    most = lengths[-2]
    counts = {}
    for how in ("skip", "truncate"):
        result = train(
            model_path,
            tmp_path / how,
            data,
            None,
            preset("leafe+", **SMALL | {"max_steps": 1}, max_length=most, too_long=how),
        )
        counts[how] = result.counts
    skipped = counts["skip"]["skipped"][f"rehearsal: longer than {most} tokens"]
    assert skipped > 0
    assert (
        counts["truncate"]["skipped"][f"rehearsal: without the oldest turns, to fit {most} tokens"]
        == skipped
    )
    assert (
        counts["truncate"]["rehearsal"]["spans"] == counts["skip"]["rehearsal"]["spans"] + skipped
    )


def test_another_tokenizer_than_the_one_that_explored_is_named(
    model_path: Path, tmp_path: Path
) -> None:
    ids = chat().tokenizer.convert_tokens_to_ids
    own = build(
        {"t0": make_tree(tokens=lambda text: (*ids(text.split()), chat().end_of_turn))},
        PROMPTS,
        preset("rehearsal"),
        0,
    )
    other = build(
        {"t0": make_tree(tokens=lambda text: tuple(range(50, 50 + len(text))))},
        PROMPTS,
        preset("rehearsal"),
        0,
    )
    config = preset("rehearsal", **SMALL | {"max_steps": 1})
    assert train(model_path, tmp_path / "own", own, None, config).notes == ()
    (note,) = train(model_path, tmp_path / "other", other, None, config).notes
    assert "not to be the one that explored: the ids of 4 of 4 different sampled answers" in note
    # an answer that the engine cut at a stop string now and then is no other tokenizer
    some = replace(
        own,
        samples=(
            *own.samples,
            replace(
                own.samples[0], task_id="x", answer=replace(own.samples[0].answer, tokens=(5, 6))
            ),
        ),
    )
    result = train(model_path, tmp_path / "some", some, None, config)
    assert result.notes == ()
    assert result.counts["skipped"] == {
        "answers tokenised again: the sampled ids do not spell the text": 1
    }


def test_an_empty_part_is_told_and_two_are_an_error(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    config = preset("leafe+", **SMALL | {"max_steps": 1})
    for name, part in (("a", "rehearsal"), ("b", "counterfactual")):
        some = Dataset(tuple(s for s in data.samples if s.part != part))
        (note,) = train(model_path, tmp_path / name, some, None, config).notes
        assert note.startswith("No samples for ")
        assert part in note
    with pytest.raises(UserError, match="nothing to train on"):
        train(model_path, tmp_path / "c", Dataset(data.part("anchor")), None, config)


def test_trackers_that_are_not_installed_are_named(
    data: Dataset, model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UserError,
        match=r"distill\.report_to names trackio, which is not installed: pip install trackio",
    ):
        train(model_path, tmp_path, data, None, preset("leafe+", **SMALL, report_to=("trackio",)))


# checkpoints


class Killed(Exception):
    pass


def broken_at(step: int) -> Callable[[Mapping[str, Any]], None]:
    def progress(row: Mapping[str, Any]) -> None:
        if row["step"] == step:
            raise Killed

    return progress


def lose(folder: Path, name: str) -> None:
    (folder / name).unlink()


def cut(folder: Path, name: str) -> None:
    os.truncate(folder / name, (folder / name).stat().st_size // 2)


SAVED: dict[str, Any] = {"save_steps": 2}


@pytest.fixture(scope="module")
def saved(data: Dataset, model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole`: a training in peace; `broken`: the same one, killed at step 5, with its checkpoints
    of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("saved")
    config = preset("leafe+", **SMALL | SAVED)
    assert train(model_path, folder / "whole", data, None, config).notes == ()
    for step in (3, 5):
        with pytest.raises(Killed):
            train(model_path, folder / "broken", data, None, config, broken_at(step))
        if step == 3:
            shutil.copytree(folder / "broken" / "checkpoints" / "step-00000002", folder / "older")
    shutil.copytree(folder / "older", folder / "broken" / "checkpoints" / "step-00000002")
    return folder


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "no state": lambda folder: lose(folder, "state.json"),
    "no weights": lambda folder: lose(folder, "trained-0.safetensors"),
    "half the moments": lambda folder: cut(folder, "optimizer-0.safetensors"),
    "half the state": lambda folder: cut(folder, "state.json"),
    "another state": lambda folder: (folder / "state.json").write_text("{}"),
    "garbage": lambda folder: (folder / "trained-0.safetensors").write_bytes(
        b"x" * (folder / "trained-0.safetensors").stat().st_size
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_is_not_whole_is_passed_over(
    data: Dataset, model_path: Path, saved: Path, tmp_path: Path, damage: str
) -> None:
    shutil.copytree(saved / "broken", tmp_path / "out")
    DAMAGES[damage](tmp_path / "out" / "checkpoints" / "step-00000004")
    steps: list[int] = []
    result = train(
        model_path,
        tmp_path / "out",
        data,
        None,
        preset("leafe+", **SMALL | SAVED),
        lambda row: steps.append(row["step"]),
    )
    assert steps == [3, 4, 5, 6, 7, 8]
    (note,) = result.notes
    assert "step-00000004 is not complete and was not used" in note
    theirs = weights(saved / "whole")
    assert all(torch.equal(t, theirs[name]) for name, t in weights(tmp_path / "out").items())


def test_where_no_checkpoint_is_whole_the_training_starts_anew(
    data: Dataset, model_path: Path, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved / "broken", tmp_path / "out")
    for folder in (tmp_path / "out" / "checkpoints").iterdir():
        cut(folder, "state.json")
    steps: list[int] = []
    result = train(
        model_path,
        tmp_path / "out",
        data,
        None,
        preset("leafe+", **SMALL | SAVED),
        lambda row: steps.append(row["step"]),
    )
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8] == [r["step"] for r in rows(tmp_path / "out")]
    assert len(result.notes) == 2
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        saved / "whole" / "model.safetensors"
    ).read_bytes()


def test_what_a_kill_leaves_of_a_save_is_no_checkpoint(
    data: Dataset, model_path: Path, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved / "broken", tmp_path / "out")
    folder = tmp_path / "out" / "checkpoints"
    (folder / "step-00000004").rename(folder / "partial-4")
    steps: list[int] = []
    result = train(
        model_path,
        tmp_path / "out",
        data,
        None,
        preset("leafe+", **SMALL | SAVED),
        lambda row: steps.append(row["step"]),
    )
    assert steps[0] == 3
    assert result.notes == ()


@pytest.mark.slow
def test_sigkill_at_random_moments_of_saving(tmp_path: Path) -> None:
    """A process saves without end and says after each save that it is done; whatever the moment at
    which it is killed, the last one said, or a later one,
    is there, whole."""
    from leafe.distill._checkpoint import Checkpoints

    def numbered(value: float) -> tuple[dict[str, Any], Any]:
        trained = {name: torch.nn.Parameter(torch.full((64, 33), value)) for name in "abc"}
        optimizer = torch.optim.AdamW(trained.values())
        for parameter in trained.values():
            optimizer.state[parameter] = {
                m: torch.full((64, 33), value) for m in ("exp_avg", "exp_avg_sq")
            }
        return trained, optimizer

    draw = random.Random(5)
    last = 0
    for _ in range(40):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                trained, optimizer = numbered(0.0)
                checkpoints = Checkpoints(tmp_path, trained, optimizer)
                # as a training that goes on: it knows which best weights the newest checkpoint
                # names
                checkpoints.load()
                for step in range(last + 1, last + 10_000):
                    for parameter in trained.values():
                        for tensor in (
                            parameter.data,
                            *(optimizer.state[parameter][m] for m in ("exp_avg", "exp_avg_sq")),
                        ):
                            tensor.fill_(float(step))
                    if step % 3 == 0:
                        checkpoints.save_best(step)
                    checkpoints.save(step, {"best_step": step - step % 3 if step > 2 else None})
                    os.write(write, step.to_bytes(4, "big"))
            finally:
                os._exit(0)
        os.close(write)
        said = os.read(read, 4)  # the first save is done
        time.sleep(draw.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(read, 4):
            said = more
        os.close(read)
        trained, optimizer = numbered(-1.0)
        checkpoints = Checkpoints(tmp_path, trained, optimizer)
        state = checkpoints.load()
        assert state is not None
        assert checkpoints.notes == []
        assert state["step"] >= int.from_bytes(said, "big") > last
        last = state["step"]
        for parameter in trained.values():
            assert bool((parameter == last).all())
            assert all(
                bool((optimizer.state[parameter][m] == last).all())
                for m in ("exp_avg", "exp_avg_sq")
            )
        if state["best_step"] is not None:
            assert all(
                bool((t == state["best_step"]).all())
                for _, t in checkpoints.best(state["best_step"])
            )
        assert len(list(tmp_path.glob("step-*"))) <= 2
