"""One optimiser step on the samples of trees: leafe's trainer against TRL's SFTTrainer, on the same
samples from the same weights.

    python -m bench.distill                      the embedded model, 4 trees a step
    python -m bench.distill --model smollm2      SmolLM2-135M, 1 tree a step

A tree of b branches is a first path of T turns and b - 1 others that leave it at evenly spaced
turns and have T turns in all. Every turn of every path is a sample (its history, its action), each
distinct one once, as `leafe.distill` and `export_trl` give them. Four trainers take steps over all
samples:

    leafe          packed trees (the default)
    leafe causal   merged rows: an episode's samples are one row, branches repeat their history
    trl padded     SFTTrainer, batches of 8 of similar length, padded
    trl packed     SFTTrainer, packing="bfd": whole samples in rows of the longest sample's length,
                   separated by a block mask. Of TRL's ways to pack it is the one that is exact on a
                   CPU: "wrapped" cuts samples and lets them see each other, and `padding_free`
                   alone makes one row of a whole batch, whose dense mask grows with its square

Each cell runs in a process of its own on one thread. Time is that of a whole step, packing,
clipping and AdamW included; the first step is dropped if there are more. Processor time stands
beside wall time, since other work on the machine lengthens it little. Memory is what a step adds to
what the process held before the first one. With a GPU the same table is made there, with tokens a
second; then FlexAttention against SDPA, and bfloat16 against float32.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from leafe.core import Message
from leafe.distill import Dataset, DistillConfig, Sample, train

KINDS = ("leafe", "leafe causal", "trl padded", "trl packed")
ACTIONS = ("take {}", "use {}", "get {}", "go left", "go right", "walk on")
THINGS = (
    "lamp",
    "rope",
    "key",
    "axe",
    "hammer",
    "chalk",
    "mirror",
    "feather",
    "needle",
    "bell",
    "candle",
    "spade",
)
PLACES = (
    "attic",
    "cellar",
    "garden",
    "library",
    "kitchen",
    "tower",
    "chapel",
    "stable",
    "harbor",
    "market",
    "bridge",
    "orchard",
)


def samples(trees: int, turns: int, branches: int) -> tuple[Sample, ...]:
    """The distinct samples of this many trees, in words that both tokenizers know."""
    out: dict[tuple[Any, ...], Sample] = {}
    for tree in range(trees):
        draw = random.Random(1000 * turns + 10 * branches + tree)

        def turn(draw: random.Random = draw) -> tuple[str, str]:
            return draw.choice(ACTIONS).format(
                draw.choice(THINGS)
            ), f"path ; in {draw.choice(PLACES)} {draw.choice(THINGS)}"

        first = f"task {tree} ; first path ; in {draw.choice(PLACES)}"
        trunk = [turn() for _ in range(turns)]
        paths = [trunk] + [
            trunk[: (at := turns * n // branches)] + [turn() for _ in range(turns - at)]
            for n in range(1, branches)
        ]
        for path in paths:
            messages: tuple[Message, ...] = (Message("user", first),)
            for nth, (action, observation) in enumerate(path):
                answer = Message("assistant", action)
                sample = Sample(
                    "rehearsal", f"t{tree}", f"t{tree}/{len(out)}.{nth}", messages, answer
                )
                out.setdefault((messages, action), sample)
                messages = (*messages, answer, Message("user", observation))
    return tuple(out.values())


def checkpoint(model: str) -> Path:
    if model == "smollm2":
        from leafe.policies import smollm2

        return smollm2.path()
    from leafe.embedded import base_path

    return base_path()


class Clock:
    """Wall and processor seconds of each step, and the memory in MiB that the steps added."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.before = 0.0

    def begin(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
        self.before = _status("VmRSS")
        self.mark()

    def mark(self) -> None:
        self.marks.append((time.perf_counter(), time.process_time()))

    def result(self) -> dict[str, Any]:
        steps = [
            [b - a for a, b in zip(one, two, strict=True)]
            for one, two in zip(self.marks, self.marks[1:], strict=False)
        ]
        steps = steps[1:] or steps
        out: dict[str, Any] = {
            "wall": [s[0] for s in steps],
            "cpu": [s[1] for s in steps],
            "memory": _status("VmHWM") - self.before,
        }
        import torch

        if torch.cuda.is_available():
            out["memory"] = torch.cuda.max_memory_allocated() / 2**20
        return out


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return float(line.split()[1]) / 1024
    return float("nan")


def run_leafe(path: Path, data: Dataset, steps: int, packing: str) -> dict[str, Any]:
    """Through `leafe.distill.train`, as a user would; the rate is too small to change a weight."""
    clock, losses = Clock(), []
    options: dict[str, Any] = {
        "packing_strategy": packing,
        "counterfactuals": "none",
        "rehearsal_batch_size": 1_000_000,
        "rehearsal_weight": 1.0,
        "max_grad_norm": 1e9,
        "learning_rate": 1e-30,
    }
    from leafe.distill import _train

    step = _train._Trainer._step

    def watched(self: Any, *given: Any, **more: Any) -> Any:
        if not clock.marks:
            clock.begin()
        return step(self, *given, **more)

    def progress(row: Any) -> None:
        clock.mark()
        losses.append(row["loss"])

    _train._Trainer._step = watched  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as out:
        result = train(path, out, data, None, DistillConfig(max_steps=steps, **options), progress)
    return clock.result() | {
        "loss": losses[0],
        "tokens": result.tokens // steps,
        "notes": list(result.notes),
    }


def run_trl(path: Path, data: Dataset, steps: int, packed: bool) -> dict[str, Any]:
    import datasets
    import torch
    import trl
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

    from leafe.core import ChatTokens
    from leafe.distill import encode

    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    # our own ids: TRL would also train on what some templates (SmolLM2's) write behind the
    # end-of-turn token
    rows = [
        {"input_ids": s.ids, "labels": [-100] * s.spans[0].start + list(s.ids[s.spans[0].start :])}
        for s in encode(data.samples, ChatTokens(tokenizer), 1_000_000, merge=False).parts[
            "rehearsal"
        ]
    ]
    longest = max(len(row["input_ids"]) for row in rows)
    clock, tokens = Clock(), 0

    def count(module: Any, given: Any, options: dict[str, Any]) -> None:
        nonlocal tokens
        tokens += options["input_ids"].numel()

    model.register_forward_pre_hook(count, with_kwargs=True)

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *given: Any, **more: Any) -> None:
            if not clock.marks:
                clock.begin()

        def on_step_end(self, *given: Any, **more: Any) -> None:
            clock.mark()

    with tempfile.TemporaryDirectory() as out:
        arguments = trl.SFTConfig(
            output_dir=out,
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            bf16=torch.cuda.is_available(),
            save_strategy="no",
            disable_tqdm=True,
            num_train_epochs=steps,
            gradient_accumulation_steps=1_000_000,
            learning_rate=1e-30,
            max_grad_norm=1e9,
            weight_decay=0.0,
            logging_steps=1,
            lr_scheduler_type="constant",
            max_length=longest,
            packing=packed,
            packing_strategy="bfd",
            per_device_train_batch_size=1 if packed else 8,
            train_sampling_strategy="random" if packed else "group_by_length",
            gradient_checkpointing=False,
        )
        trainer = trl.SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=tokenizer,
            callbacks=[Watch()],
        )
        trainer.remove_callback(PrinterCallback)
        tokens = 0
        trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return clock.result() | {"loss": losses[0], "tokens": tokens // steps}


def child(kind: str, path: Path, data: Path, steps: int) -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    dataset = Dataset.load(data)
    if kind.startswith("leafe"):
        return run_leafe(path, dataset, steps, "causal" if kind.endswith("causal") else "tree")
    return run_trl(path, dataset, steps, kind.endswith("packed"))


def cell(kind: str, model: str, data: Path, steps: int) -> dict[str, Any]:
    """One trainer in a process of its own, forked from one that has imported everything."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver")) as pool:
        return pool.submit(child, kind, checkpoint(model), data, steps).result()


def spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def table(
    model: str,
    trees: int,
    turns: Sequence[int],
    branches: Sequence[int],
    kinds: Sequence[str],
    steps: int,
    rounds: int,
) -> None:
    print(
        "| turns | branches | samples | trainer | tokens computed | seconds a step [min, "
        "max] | processor seconds | memory MiB | loss | times trl's best |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for length in turns:
        for number in branches:
            with tempfile.TemporaryDirectory() as folder:
                data = Path(folder) / "data.jsonl"
                mine = samples(trees, length, number)
                Dataset(mine).save(data)
                found: dict[str, list[dict[str, Any]]] = {k: [] for k in kinds}
                for nth in range(rounds):  # in turn, and in reverse, so that a slow minute hits all
                    for kind in kinds if nth % 2 == 0 else reversed(kinds):
                        found[kind].append(cell(kind, model, data, steps))
            cpu = {k: statistics.median(x for r in found[k] for x in r["cpu"]) for k in kinds}
            wall = {k: statistics.median(x for r in found[k] for x in r["wall"]) for k in kinds}
            theirs = [k for k in kinds if k.startswith("trl")]
            for kind in kinds:
                one = found[kind]
                times = ""
                if theirs and not kind.startswith("trl"):
                    times = (
                        f"{min(cpu[k] for k in theirs) / cpu[kind]:.1f} (clock "
                        f"{min(wall[k] for k in theirs) / wall[kind]:.1f})"
                    )
                cells = [
                    length,
                    number,
                    len(mine),
                    kind,
                    f"{one[0]['tokens']:,}",
                    spread([x for r in one for x in r["wall"]]),
                    spread([x for r in one for x in r["cpu"]]),
                    f"{statistics.median(r['memory'] for r in one):.0f}",
                    f"{one[0]['loss']:.6f}",
                    times,
                ]
                print("| " + " | ".join(map(str, cells)) + " |", flush=True)
            losses = [r["loss"] for k in kinds for r in found[k]]
            if max(losses) - min(losses) > 1e-4 * max(losses) and not _gpu():
                raise SystemExit(f"the losses differ: {losses}")
            for note in found[kinds[0]][0].get("notes", []):
                print(note)


def _gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def gpu(model: str) -> None:
    """FlexAttention against SDPA in float32, and what bfloat16 adds, on one tree of 20 turns and 4
    branches."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from leafe.core import ChatTokens
    from leafe.distill import encode
    from leafe.distill._attention import Attention, select_attention
    from leafe.distill._loss import collate, part_losses, totals
    from leafe.distill._pack import pack

    path = checkpoint(model)
    torch.backends.cuda.matmul.allow_tf32 = False
    batch = encode(
        samples(1, 20, 4), ChatTokens(AutoTokenizer.from_pretrained(path)), 100_000
    ).parts["rehearsal"]
    results: dict[str, tuple[float, torch.Tensor]] = {}
    for name in ("sdpa float32", "flex float32", "flex bfloat16"):
        one = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).to("cuda")
        attention = Attention("sdpa", head=True)
        if name.startswith("flex"):
            attention = select_attention(one, 10_000)
        if name.startswith("flex") and attention.kind != "flex":
            print(f"no FlexAttention here: {attention.notes}")
            return
        pieces = [
            collate([row], totals(batch), 0, attention).to("cuda")
            for row in pack(batch, attention.limits(4096))
        ]
        with torch.autocast("cuda", torch.bfloat16, enabled=name.endswith("bfloat16")):
            loss = sum(part_losses(one, None, piece) for piece in pieces)
        assert isinstance(loss, torch.Tensor)
        loss.sum().backward()
        results[name] = (
            float(loss.sum()),
            torch.cat([p.grad.flatten() for p in one.parameters() if p.grad is not None]),
        )
    print(
        "\n| attention | loss | gradient: relative distance from SDPA in float32 |\n| --- "
        "| --- | --- |"
    )
    truth = results["sdpa float32"][1]
    for name, (value, gradient) in results.items():
        print(f"| {name} | {value:.7f} | {float((gradient - truth).norm() / truth.norm()):.1e} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=("tiny", "smollm2"), default="tiny")
    parser.add_argument("--turns", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--branches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--trees", type=int, help="trees a step (4; SmolLM2: 1)")
    parser.add_argument(
        "--steps",
        type=int,
        default=4,
        help="steps in each process; the first is dropped if there are more",
    )
    parser.add_argument("--rounds", type=int, default=2, help="processes of each trainer")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": "1",
        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    }
    multiprocessing.set_forkserver_preload(
        ["torch", "datasets", "trl.trainer.sft_trainer", "leafe.distill._train"]
    )
    trees = options.trees or (1 if options.model == "smollm2" else 4)
    print(
        f"{options.model}, {trees} trees a step, {options.rounds} processes a cell of "
        f"{options.steps} steps"
    )
    table(
        options.model,
        trees,
        options.turns,
        options.branches,
        options.kinds,
        options.steps,
        options.rounds,
    )
    if _gpu():
        gpu(options.model)


if __name__ == "__main__":
    main()
