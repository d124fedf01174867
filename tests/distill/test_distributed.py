"""One training on several processes is the training on one: however a batch is cut, its gradient is
the same."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leafe.core import ForeignFailure, UserError
from leafe.distill import Dataset, DistillConfig, preset, train

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

SIZES: dict[str, Any] = {
    "rehearsal_batch_size": 4,
    "counterfactual_batch_size": 3,
    "anchor_batch_size": 3,
    "reflection_batch_size": 1,
}


def training(data: Dataset, model_path: Path, config: DistillConfig, out: Path) -> Any:
    """A training before its first step, in float64 and moved away from its start policy."""
    from leafe.core import ChatTokens
    from leafe.distill import encode
    from leafe.distill._model import load
    from leafe.distill._parallel import Parallel
    from leafe.distill._train import _Trainer

    parallel = Parallel()
    source = load(model_path, config, parallel.device)
    source.model.double()
    encoded = encode(data.samples, ChatTokens(source.tokenizer), 512)
    made = _Trainer(parallel, source, out, encoded, None, config, None, ())
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in made.trained.values():
            parameter += 0.02 * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module")
def trainings(
    data: Dataset, model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[Any, Any]:
    out = tmp_path_factory.mktemp("never")
    options: list[Any] = [
        ("tree", "sequence"),
        ("causal", "sequence"),
        ("tree", "task"),
        ("causal", "task"),
    ]
    return {
        (p, b): training(
            data,
            model_path,
            preset(
                "leafe+", **SIZES, max_steps=9, packing_strategy=p, batch_by=b, tasks_per_batch=2
            ),
            out,
        )
        for p, b in options
    }


def gradient(of: Any, step: int, budget: int, processes: int, sharded: bool) -> tuple[Any, Any]:
    """(losses_P, the gradient) of a step as so many processes have it: the mean of theirs, as
    accelerate takes it."""
    of.budget, of.parallel.processes, of.parallel.sharded = budget, processes, sharded
    losses = 0
    passes = set()
    for rank in range(processes):
        of.parallel.rank = rank
        found = of._gradient(step, of.batches.batch(step))
        losses = losses + found[0]
        passes.add(of._micro_batches(of.batches.batch(step))[0])
    assert len(passes) == 1
    out = {name: p.grad / processes for name, p in of.trained.items()}
    of._zero_grad()
    return losses, out


@given(
    st.sampled_from(
        [("tree", "sequence"), ("causal", "sequence"), ("tree", "task"), ("causal", "task")]
    ),
    st.integers(0, 5),
    st.integers(2, 1500),
    st.integers(1, 4),
    st.booleans(),
)
@settings(max_examples=12)
def test_however_a_batch_is_cut_its_gradient_is_the_same(
    trainings: Any, kind: Any, step: int, budget: int, processes: int, sharded: bool
) -> None:
    losses, found = gradient(trainings[kind], step, budget, processes, sharded)
    expected_losses, expected = gradient(trainings["causal", kind[1]], step, 1 << 20, 1, False)
    torch.testing.assert_close(
        losses, expected_losses, rtol=1e-5, atol=1e-7
    )  # they are kept in float32
    whole = sum(float(t.norm()) ** 2 for t in expected.values()) ** 0.5
    for name, tensor in expected.items():
        assert float((found[name] - tensor).norm()) < 1e-5 * max(
            float(tensor.norm()), 1e-2 * whole
        )  # norms are computed in float32
    assert any(float(t.abs().max()) > 1e-3 for t in expected.values())


def test_where_the_start_policy_is_sharded_all_run_it_or_none(trainings: Any) -> None:
    of = trainings["tree", "sequence"]
    of.budget, of.parallel.processes, of.parallel.sharded = 40, 3, True
    passes = []
    for rank in range(3):
        of.parallel.rank = rank
        passes.append(
            [piece.teacher is not None for piece in of._micro_batches(of.batches.batch(0))[2]]
        )
    assert passes[0] == passes[1] == passes[2]
    assert {True, False} == set(passes[0])


# real processes

FSDP = """
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_reshard_after_forward: true
  fsdp_cpu_ram_efficient_loading: {ram}
  fsdp_activation_checkpointing: {ram}
mixed_precision: 'no'
num_machines: 1
num_processes: 2
main_process_port: {port}
"""
DATA_PARALLEL = """
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_CPU
use_cpu: true
mixed_precision: 'no'
num_machines: 1
num_processes: 2
main_process_port: {port}
"""


def accelerate(tmp_path: Path, text: str, **values: Any) -> str:
    """A launcher's command with such a config file."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = tmp_path / f"accelerate-{port}.yaml"
    path.write_text(text.format(port=port, **values), encoding="utf-8")
    return f"{sys.executable} -m accelerate.commands.launch --config_file {path}"


def weights(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def metrics(path: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def same(one: Path, other: Path) -> None:
    for key in ("loss", "grad_norm", "valid_loss", "loss/rehearsal", "loss/anchor"):
        curves = [[row[key] for row in metrics(path) if key in row] for path in (one, other)]
        assert curves[0] == pytest.approx(curves[1], rel=1e-4, abs=1e-6), key
        assert len(curves[0]) >= 4
    theirs = weights(one)
    # Adam makes much of little where a gradient is near 0
    for name, tensor in weights(other).items():
        assert tensor.dtype == theirs[name].dtype
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-2, atol=1e-3)


CONFIG = preset(
    "leafe+",
    max_steps=6,
    learning_rate=3e-3,
    eval_steps=2,
    micro_batch_tokens=50,
    save_steps=2,
    **SIZES,
)
LORA = CONFIG.model_copy(
    update={"lora": preset("leafe+", lora={"r": 2}).lora, "batch_by": "task", "tasks_per_batch": 2}
)


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "values", "config"),
    [
        (FSDP, {"ram": "false"}, CONFIG),
        (FSDP, {"ram": "true"}, LORA),
        (DATA_PARALLEL, {}, CONFIG),
        (DATA_PARALLEL, {}, LORA),
    ],
    ids=["fsdp2", "fsdp2, lora, loaded once, checkpointed", "data-parallel", "data-parallel, lora"],
)
def test_two_processes_train_as_one_does(
    data: Dataset, model_path: Path, tmp_path: Path, text: str, values: Any, config: DistillConfig
) -> None:
    from leafe.distill._job import train_with

    some, valid = data.split(0.3, 0)
    one = train(model_path, tmp_path / "one", some, valid, config)
    steps: list[int] = []
    two = train_with(
        accelerate(tmp_path, text, **values),
        model_path,
        tmp_path / "two",
        some,
        valid,
        config,
        lambda row: steps.append(row["step"]),
    )
    assert steps == [0, 1, 2, 3, 4, 5, 6]
    assert (two.steps, two.kept_step, two.counts, two.notes, two.given) == (
        one.steps,
        one.kept_step,
        one.counts,
        one.notes,
        one.given,
    )
    same(tmp_path / "one", tmp_path / "two")
    assert {p.name for p in (tmp_path / "two").iterdir()} == {
        p.name for p in (tmp_path / "one").iterdir()
    } | {"job"}


@pytest.mark.slow
def test_a_sharded_training_that_was_killed_goes_on_with_any_number_of_processes(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    """Begun by two sharding processes, killed; gone on with by one alone, stopped; and brought to
    its end by two."""
    from leafe.distill._job import train_with

    some, valid = data.split(0.3, 0)
    config = CONFIG.model_copy(update={"save_steps": 1})
    train(model_path, tmp_path / "one", some, valid, config)
    out = tmp_path / "two"

    class Enough(Exception):
        pass

    def until(step: int) -> Any:
        def progress(row: Mapping[str, Any]) -> None:
            if row["step"] == step:
                raise Enough

        return progress

    with pytest.raises(Enough):
        train_with(
            accelerate(tmp_path, FSDP, ram="false"), model_path, out, some, valid, config, until(3)
        )
    checkpoints = sorted(p.name for p in (out / "checkpoints").glob("step-*"))
    assert checkpoints
    with pytest.raises(Enough):
        train(model_path, out, some, valid, config, until(5))
    result = train_with(
        accelerate(tmp_path, FSDP, ram="true"), model_path, out, some, valid, config, None
    )
    assert result.notes == ()
    same(tmp_path / "one", out)


@pytest.mark.slow
def test_what_a_launcher_started_ends_with_its_caller(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    data.save(tmp_path / "data.jsonl")
    program = f"""
import sys
from pathlib import Path
from leafe.distill import Dataset, preset
from leafe.distill._job import train_with
train_with(
    {accelerate(tmp_path, DATA_PARALLEL)!r},
    {str(model_path)!r},
    Path({str(tmp_path / "out")!r}),
    Dataset.load(Path({str(tmp_path / "data.jsonl")!r})),
    None,
    preset("leafe+", max_steps=100000, learning_rate=1e-5),
    lambda row: print(row["step"], flush=True),
)
"""
    caller = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, env=dict(os.environ)
    )
    assert caller.stdout is not None
    assert caller.stdout.readline() == b"1\n"
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    job = str(tmp_path / "out" / "job" / "job.json")
    for _ in range(100):
        left = [p for p in Path("/proc").iterdir() if p.name.isdigit() and _runs(p, job)]
        if not left:
            break
        time.sleep(0.2)
    assert left == []


def _runs(process: Path, job: str) -> bool:
    try:
        return job in (process / "cmdline").read_bytes().decode().split("\0")
    except OSError:
        return False


def test_a_launched_training_says_its_errors_in_our_own_kinds(
    data: Dataset, model_path: Path, tmp_path: Path
) -> None:
    from leafe.distill._job import train_with

    config = preset("leafe+", **SIZES, max_steps=2)
    with pytest.raises(UserError, match="cannot be loaded as a causal language model"):
        train_with(sys.executable, tmp_path / "nowhere", tmp_path / "a", data, None, config, None)
    with pytest.raises(UserError, match=r"'no-such-program --x' cannot be started"):
        train_with("no-such-program --x", model_path, tmp_path / "b", data, None, config, None)
    with pytest.raises(
        ForeignFailure, match=r"exited with code 2: see .*launch\.log, which ends with"
    ):
        train_with(
            f"{sys.executable} --no-such-option",
            model_path,
            tmp_path / "c",
            data,
            None,
            config,
            None,
        )
    assert "no-such-option" in (tmp_path / "c" / "job" / "launch.log").read_text(encoding="utf-8")


def test_a_job_is_a_file(
    data: Dataset, model_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from leafe.distill import _job

    config = preset("leafe+", **SIZES, max_steps=2, eval_steps=1)
    some, valid = data.split(0.3, 0)
    path = tmp_path / "job.json"
    _job.write(path, model_path, tmp_path / "out", some, valid, config)
    assert _job.main([str(path)]) == 0
    assert "leafe.distill step" in capsys.readouterr().out
    expected = train(model_path, tmp_path / "direct", some, valid, config)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (
        tmp_path / "direct" / "model.safetensors"
    ).read_bytes()
    assert expected.steps == 2
    assert _job.main([]) == 2
    for text, why in (
        ("{}", "it has no 'config'"),
        ("[", "Expecting value"),
        ('{"config": {"max_steps": 0}}', "validation error"),
    ):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=f"is no job of a training: .*{why}"):
            _job.run(path, None)
    assert _job.main([str(path)]) == 2
    assert "is no job of a training" in capsys.readouterr().err
