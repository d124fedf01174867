"""GRPO through TRL: the loss by its definition in float64 and against TRL's own trainer; what
happens when a training is cut, adapted or cannot learn."""

from __future__ import annotations

import json
import math
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from leafe.baselines.grpo import GrpoConfig, GrpoResult, RolloutSequence, rollout_sequence, train  # noqa: E402
from leafe.baselines.grpo import _train as inside  # noqa: E402
from leafe.core import ForeignFailure, Policy, StepResult, Task, UserError  # noqa: E402
from leafe.distill import Lora  # noqa: E402
from leafe.embedded import base_path  # noqa: E402
from leafe.envs.gates import Gates  # noqa: E402
from leafe.evaluate import counts, evaluate  # noqa: E402
from leafe.explore import EnvPool  # noqa: E402
from leafe.policies.hf import load_model, load_tokenizer  # noqa: E402
from leafe.prompts import Prompts, load_prompt_set  # noqa: E402

PROMPTS = Prompts(load_prompt_set("gates"))
TASKS = Gates("easy", "habit").tasks("train", 12, 0)
SMALL: Mapping[str, Any] = {
    "num_generations": 4,
    "tasks_per_batch": 4,
    "learning_rate": 1e-3,
    "horizon": 12,
    "max_steps": 2,
}


class Env(Gates):
    """As gates, and counts its steps; half a point is paid for every stage that is passed, so that
    groups differ early on."""

    steps = 0

    def step(self, action: str) -> StepResult:
        Env.steps += 1
        at = self._at
        result = super().step(action)
        return StepResult(
            result.observation,
            0.5 * (self._at - at),
            result.done,
            result.success,
            result.valid,
            result.progress,
        )


def learn(
    out: Path,
    tasks: Sequence[Task] = TASKS,
    progress: Any = None,
    validate: Any = None,
    model: Path | None = None,
    **options: Any,
) -> GrpoResult:
    config = GrpoConfig(**({"reward": "env"} | dict(SMALL) | options))
    return train(
        model or base_path(),
        out,
        lambda: Env("easy", "habit"),
        tasks,
        PROMPTS,
        config,
        validate=validate,
        progress=progress,
    )


def success_on(tasks: Sequence[Task], samples: int) -> Any:
    async def validate(policy: Policy) -> float:
        pool = EnvPool(lambda: Gates("easy", "habit"), size=64)
        found = counts(await evaluate(policy, pool, tasks, PROMPTS, samples=samples))
        return float(found.c.sum() / found.n.sum())

    return validate


def weights(folder: Path) -> dict[str, Any]:
    return dict(load_model(folder).state_dict())


def apart(one: Mapping[str, Any], two: Mapping[str, Any]) -> float:
    """The largest difference of two checkpoints' weights."""
    assert one.keys() == two.keys()
    return max(float((one[name] - two[name]).abs().max()) for name in one)


class Spy:
    """Keeps what the trainer computed its losses from: the batches of rollouts, the weights of that
    moment, the rows of each forward pass and their loss."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.batches: list[list[RolloutSequence]] = []
        self.passes: list[dict[str, Any]] = []
        rollouts, loss = inside._Training._rollouts, inside._Trainer._compute_loss

        def keep_batch(training: Any, prompts: Any, trainer: Any) -> Any:
            given = rollouts(training, prompts, trainer)
            self.batches.append(training.batch.rollouts)
            return given

        def keep_pass(trainer: Any, model: Any, inputs: Any) -> Any:
            out = loss(trainer, model, inputs)
            now = {name: tensor.double().clone() for name, tensor in model.state_dict().items()}
            self.passes.append(
                {
                    "inputs": inputs,
                    "loss": float(out.detach()),
                    "weights": now,
                    "batch": len(self.batches) - 1,
                }
            )
            return out

        patch.setattr(inside._Training, "_rollouts", keep_batch)
        patch.setattr(inside._Trainer, "_compute_loss", keep_pass)


def exact_logp(model: Any, row: RolloutSequence, temperature: float = 1.0) -> list[float]:
    """Log-probabilities of the sampled tokens of a row, alone and unpadded, in the model's own
    arithmetic."""
    ids = torch.tensor([row.prompt + row.completion])
    with torch.no_grad():
        logp = (model(input_ids=ids, use_cache=False).logits[0] / temperature).log_softmax(-1)
    first = len(row.prompt)
    return [
        float(logp[first + i - 1, token])
        for i, (token, one) in enumerate(zip(row.completion, row.mask, strict=True))
        if one
    ]


def advantage(row: RolloutSequence, batch: Sequence[RolloutSequence], group: int) -> float:
    """(r - mean) / (standard deviation + 1e-4) over the rollouts of the row's task; TRL divides by
    n - 1."""
    at = next(i for i, other in enumerate(batch) if other is row) // group
    rewards = [r.reward for r in batch[at * group : (at + 1) * group] if r.reward is not None]
    assert row.reward is not None
    return (row.reward - statistics.fmean(rewards)) / (statistics.stdev(rewards) + 1e-4)


def by_hand(
    rows: Sequence[RolloutSequence],
    batch: Sequence[RolloutSequence],
    group: int,
    now: Any,
    old: Any,
    start: Any,
    config: GrpoConfig,
) -> float:
    """The objective of DeepSeekMath (arXiv 2402.03300, eq. 3), token by token; the KL term times
    the ratio, as DeepSeek-V3.2 has it (arXiv 2512.02556): without
    it the gradient is not that of the divergence."""
    per_row, tokens = [], []
    for row in rows:
        a = advantage(row, batch, group)
        terms = []
        for new, before, reference in zip(
            *(exact_logp(m, row, config.temperature) for m in (now, old, start)), strict=True
        ):
            ratio = math.exp(new - before)
            cut = min(max(ratio, 1 - config.epsilon), 1 + config.epsilon)
            kl = math.exp(reference - new) - (reference - new) - 1
            terms.append(-min(ratio * a, cut * a) + config.beta * ratio * kl)
        per_row.append(statistics.fmean(terms))
        tokens += terms
    return statistics.fmean(per_row) if config.loss_type == "grpo" else statistics.fmean(tokens)


def double(state: Mapping[str, Any]) -> Any:
    model = load_model(base_path()).double()
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize(("loss", "temperature"), [("grpo", 1.0), ("dapo", 0.8)])
def test_the_loss_is_the_definition_in_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str, temperature: float
) -> None:
    """Two batches with two optimiser steps on each, at a rate at which ratios leave the clipping
    range, with the KL term: every piece of the formula counts."""
    spy = Spy(monkeypatch)
    options = {
        "num_iterations": 2,
        "beta": 0.3,
        "epsilon": 0.05,
        "loss_type": loss,
        "per_device_train_batch_size": 16,
        "temperature": temperature,
    }
    learn(tmp_path, **options)
    config = GrpoConfig(reward="env", **(dict(SMALL) | options))
    start = load_model(base_path()).double()
    assert [p["batch"] for p in spy.passes] == [0, 0, 1, 1]
    moved = []
    for nth, one in enumerate(spy.passes):
        batch = spy.batches[one["batch"]]
        now, old = double(one["weights"]), double(spy.passes[nth - nth % 2]["weights"])
        due = by_hand(batch, batch, 4, now, old, start, config)
        assert one["loss"] == pytest.approx(due, abs=2e-6, rel=2e-5)
        moved += [
            abs(a - b)
            for row in batch
            for a, b in zip(exact_logp(now, row), exact_logp(old, row), strict=True)
        ]
    assert spy.passes[0]["loss"] == pytest.approx(0, abs=1e-6 if loss == "grpo" else 10)
    assert max(moved) > 0.05, "some ratios were clipped"


def test_the_loss_of_a_batch_does_not_depend_on_how_it_is_cut(tmp_path: Path) -> None:
    found = {}
    for micro in (16, 4, 1):
        learn(
            tmp_path / str(micro), per_device_train_batch_size=micro, max_steps=1, num_iterations=2
        )
        found[micro] = weights(tmp_path / str(micro))
    assert apart(found[16], found[4]) < 2e-5
    assert apart(found[16], found[1]) < 2e-5


def test_on_the_same_rollouts_it_is_trls_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL's trainer as its manual has it, given the ids, masks and rewards that ours had: the same
    loss and the same weights after it."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    spy = Spy(monkeypatch)
    learn(tmp_path / "ours", max_steps=1, beta=0.1, per_device_train_batch_size=16)
    monkeypatch.undo()
    (batch,) = spy.batches
    losses: list[float] = []

    class Plain(GRPOTrainer):  # type: ignore[misc]
        def _send_telemetry(self) -> None:
            pass

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            out = super()._compute_loss(model, inputs)
            losses.append(float(out.detach()))
            return out

    def again(prompts: list[str], trainer: Any) -> dict[str, Any]:
        return {
            "prompt_ids": [list(r.prompt) for r in batch],
            "completion_ids": [list(r.completion) for r in batch],
            "logprobs": None,
            "env_mask": [list(r.mask) for r in batch],
            "points": [r.reward for r in batch],
        }

    model = load_model(base_path())
    args = GRPOConfig(
        output_dir=str(tmp_path / "trl"),
        max_steps=1,
        per_device_train_batch_size=16,
        num_generations=4,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        beta=0.1,
        loss_type="grpo",
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    trainer = Plain(
        model=model,
        args=args,
        reward_funcs=lambda completions, points, **_: points,
        processing_class=load_tokenizer(base_path()),
        rollout_func=again,
        train_dataset=Dataset.from_dict({"prompt": ["?"] * 4}),
    )
    trainer.train()
    assert losses == [pytest.approx(spy.passes[0]["loss"], abs=1e-7)]
    assert apart(model.state_dict(), weights(tmp_path / "ours")) < 1e-5
    assert apart(weights(base_path()), weights(tmp_path / "ours")) > 5e-4


def test_what_the_env_said_carries_no_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss as a function of every completion token's log-probability: its derivative is 0 at
    the environment's tokens, and where the group agrees."""
    seen: list[tuple[Any, Any, Any]] = []
    compute, score = (
        inside._Trainer._compute_loss,
        inside._Trainer._get_per_token_logps_and_entropies,
    )

    def held(trainer: Any, *given: Any, **options: Any) -> Any:
        logps, entropies, aux = score(trainer, *given, **options)
        if logps.requires_grad:
            logps = logps.detach().requires_grad_()
            seen.append((logps, None, None))
        return logps, entropies, aux

    def keep(trainer: Any, model: Any, inputs: Any) -> Any:
        loss = compute(trainer, model, inputs)
        logps = seen.pop()[0]
        (gradient,) = torch.autograd.grad(loss, logps, retain_graph=True)
        seen.append(
            (gradient, inputs["completion_mask"] * inputs["tool_mask"], inputs["advantages"])
        )
        return loss + 0 * sum(p.sum() for p in model.parameters())

    monkeypatch.setattr(inside._Trainer, "_get_per_token_logps_and_entropies", held)
    monkeypatch.setattr(inside._Trainer, "_compute_loss", keep)
    learn(tmp_path, max_steps=1)
    gradients = [(g, m.bool(), a) for g, m, a in seen]
    assert sum(int((~m).sum()) for _, m, _ in gradients) > 100
    for gradient, mask, advantages in gradients:
        assert not gradient[~mask].any()
        assert not gradient[advantages == 0].any()
        assert (gradient[advantages != 0][mask[advantages != 0]] != 0).all()
    assert any((a != 0).any() for _, _, a in gradients)


def test_the_engine_samples_from_the_weights_that_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step the rollouts' own log-probabilities are those of the model of that moment:
    nothing stale, no token other than was sampled."""
    from leafe.baselines.grpo import _rollouts

    spy = Spy(monkeypatch)
    said: list[float] = []
    rollout_sequence = _rollouts.rollout_sequence

    def noting(tree: Any, episode: Any, *given: Any) -> RolloutSequence:
        said.append(sum(t.logprob for t in tree.trajectory(episode)))
        assert {t.policy for t in tree.trajectory(episode)} == {f"{base_path()}@{len(said) // 17}"}
        return rollout_sequence(tree, episode, *given)

    monkeypatch.setattr(_rollouts, "rollout_sequence", noting)
    learn(tmp_path, learning_rate=3e-3, per_device_train_batch_size=16, temperature=0.7)
    at_first = load_model(base_path()).double()
    for nth, one in enumerate(spy.passes):
        now = double(one["weights"])
        due = [sum(exact_logp(now, row, 0.7)) for row in spy.batches[nth]]
        assert said[16 * nth : 16 * (nth + 1)] == pytest.approx(due, abs=1e-3)
    old = [sum(exact_logp(at_first, row, 0.7)) for row in spy.batches[1]]
    assert max(abs(a - b) for a, b in zip(old, said[16:], strict=True)) > 0.1


def test_groups_that_agree_teach_nothing(tmp_path: Path) -> None:
    rows: list[Mapping[str, Any]] = []
    learn(tmp_path, reward="success", horizon=1, progress=rows.append)
    assert [r["mixed_groups"] for r in rows] == [0, 0]
    assert [r["grad_norm"] for r in rows] == [0, 0]
    assert apart(weights(base_path()), weights(tmp_path)) == 0


def test_the_budget_is_met_to_the_call(tmp_path: Path) -> None:
    Env.steps = 0
    rows: list[Mapping[str, Any]] = []
    result = learn(tmp_path, max_steps=None, limits={"policy_calls": 333}, progress=rows.append)
    assert result.spent["policy_calls"] == result.spent["env_steps"] == Env.steps == 333
    assert result.steps == len(rows) >= 3
    assert sum(result.stops.values()) == result.spent["episodes"]
    assert result.stops["budget"] >= 1
    none = learn(tmp_path / "none", max_steps=None, limits={"policy_calls": 2})
    assert none.steps == 0
    assert none.spent["policy_calls"] == 2
    assert "no step" in none.notes[0]
    assert apart(weights(base_path()), weights(tmp_path / "none")) == 0


class Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_weights_and_the_bill_of_an_unbroken_one(
    tmp_path: Path,
) -> None:
    options: dict[str, Any] = {
        "max_steps": 4,
        "num_iterations": 2,
        "beta": 0.1,
        "save_steps": 2,
        "warmup_steps": 3,
        "eval_steps": 2,
    }
    valid = success_on(Gates("easy", "habit").tasks("valid", 4, 0), 2)
    unbroken = learn(tmp_path / "a", validate=valid, **options)

    def kill(row: Mapping[str, Any]) -> None:
        if row["step"] == 3:
            raise Killed

    with pytest.raises(Killed):
        learn(tmp_path / "b", validate=valid, progress=kill, **options)
    with pytest.raises(UserError, match="another training"):
        learn(tmp_path / "b", validate=valid, **(options | {"beta": 0.2}))
    took: list[Mapping[str, Any]] = []
    resumed = learn(tmp_path / "b", validate=valid, progress=took.append, **options)
    assert [r["step"] for r in took] == [3, 4]
    assert apart(weights(tmp_path / "a"), weights(tmp_path / "b")) < 1e-6
    assert (resumed.spent["policy_calls"], resumed.stops, resumed.kept_step) == (
        unbroken.spent["policy_calls"],
        unbroken.stops,
        unbroken.kept_step,
    )
    assert resumed.valid_success == unbroken.valid_success

    def course(folder: Path) -> list[Any]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [
            (r["step"], r.get("reward"), r.get("lr"), r.get("policy_calls"), r.get("valid_success"))
            for r in lines
        ]

    assert course(tmp_path / "a") == course(tmp_path / "b")
    assert not (tmp_path / "b" / "checkpoints").exists()
    assert learn(tmp_path / "b", validate=valid, **options).to_json() == resumed.to_json(), (
        "what is finished is not done again"
    )
    with pytest.raises(UserError, match="another training"):
        learn(tmp_path / "b", validate=valid, **(options | {"seed": 1}))


def test_the_checkpoint_is_one_that_everything_else_starts_from(tmp_path: Path) -> None:
    learn(tmp_path / "one", max_steps=1)
    made, source = (
        {p.name for p in (tmp_path / "one").iterdir()},
        {p.name for p in base_path().iterdir()},
    )
    assert made == (source - {"facts.json", "__pycache__"}) | {"metrics.jsonl", "train.json"}
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "generation_config.json",
    ):
        assert (tmp_path / "one" / name).read_bytes() == (base_path() / name).read_bytes()
    second = learn(tmp_path / "two", model=tmp_path / "one", max_steps=1, beta=0.1)
    assert second.steps == 1
    assert apart(weights(tmp_path / "one"), weights(tmp_path / "two")) > 5e-4


def test_the_best_on_validation_is_kept(tmp_path: Path) -> None:
    valid = success_on(Gates("easy", "habit").tasks("valid", 6, 0), 8)
    rows: list[Mapping[str, Any]] = []
    # at such a rate the policy is lost after a step
    result = learn(
        tmp_path, validate=valid, eval_steps=1, learning_rate=0.3, max_steps=3, progress=rows.append
    )
    rates = {r["step"]: r["valid_success"] for r in rows}
    assert list(rates) == [0, 1, 2, 3]
    assert result.kept_step == 0
    assert result.valid_success == max(rates.values()) == rates[0] > 0.1
    assert rates[3] == 0
    assert apart(weights(base_path()), weights(tmp_path)) == 0


@pytest.mark.parametrize("merge", [True, False])
def test_with_lora_the_adapter_alone_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merge: bool
) -> None:
    pytest.importorskip("peft")
    spy = Spy(monkeypatch)
    rows: list[Mapping[str, Any]] = []
    learn(
        tmp_path,
        lora=Lora(r=4, lora_alpha=16, merge=merge),
        beta=0.05,
        learning_rate=1e-2,
        progress=rows.append,
    )
    before, after = weights(base_path()), weights(tmp_path)  # an adapter's folder names its base
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}
    assert (tmp_path / "adapter_model.safetensors").is_file() is not merge
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert rows[1]["kl"] > 1e-5, "the reference is the base without the adapter"
    # the second batch was sampled with the adapter in place
    first = [sum(exact_logp(load_model(base_path()), r)) for r in spy.batches[1]]
    assert any(r.reward for r in spy.batches[1])
    assert len(first) == 16


def test_envs_that_fail_end_the_training_and_it_goes_on_where_it_was(tmp_path: Path) -> None:
    class Breaks(Env):
        broken = False

        def step(self, action: str) -> StepResult:
            if Breaks.broken:
                raise RuntimeError("the floor gave way")
            return super().step(action)

    config = GrpoConfig(reward="env", **(dict(SMALL) | {"max_steps": 3, "save_steps": 1}))
    rows: list[Mapping[str, Any]] = []

    def notice(row: Mapping[str, Any]) -> None:
        rows.append(row)
        Breaks.broken = len(rows) == 2

    with pytest.raises(ForeignFailure, match="the floor gave way"):
        train(
            base_path(),
            tmp_path,
            lambda: Breaks("easy", "habit"),
            TASKS,
            PROMPTS,
            config,
            progress=notice,
        )
    Breaks.broken = False
    result = train(
        base_path(),
        tmp_path,
        lambda: Breaks("easy", "habit"),
        TASKS,
        PROMPTS,
        config,
        progress=rows.append,
    )
    assert [r["step"] for r in rows] == [1, 2, 3]
    assert "env_error" not in result.stops
    assert result.spent["episodes"] == 48


@pytest.mark.slow
def test_half_precision_updates(tmp_path: Path) -> None:
    learn(tmp_path / "half", dtype="bfloat16", max_steps=1)
    learn(tmp_path / "full", dtype="float32", max_steps=1)
    assert 0 < apart(weights(tmp_path / "half"), weights(tmp_path / "full")) <= 0.0021, (
        "at most a step to either side"
    )
    learn(tmp_path / "lora", dtype="bfloat16", max_steps=1, lora=Lora(r=4))
    after = weights(tmp_path / "lora")
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}, (
        "in the type of the source"
    )
    assert 0 < apart(after, weights(base_path())) < 0.02


def test_a_lost_rollout_is_no_reward_of_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves no group's mean, has no advantage, and the others have what they would have without
    it."""
    made = count()
    monkeypatch.setattr(
        "leafe.baselines.grpo._rollouts.rollout_sequence",
        lambda *given: replace(
            rollout_sequence(*given), reward=(None, 1.0, 1.0, 0.25)[next(made) % 4]
        ),
    )
    spy = Spy(monkeypatch)
    learn(tmp_path, per_device_train_batch_size=16)
    for one in spy.passes:
        batch = spy.batches[one["batch"]]
        assert [row.reward for row in batch] == [None, 1.0, 1.0, 0.25] * (len(batch) // 4)
        due = sorted(0.0 if row.reward is None else advantage(row, batch, 4) for row in batch)
        assert sorted(one["inputs"]["advantages"].tolist()) == pytest.approx(due, abs=1e-5)


@pytest.mark.parametrize(
    ("version", "fits"),
    [("1.0.0", False), ("1.5.1", False), ("1.6.0", True), ("1.10.0.dev0", True), ("2.0", True)],
)
def test_an_older_trl_is_refused(
    version: str, fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trl.__version__", version)
    with pytest.raises(UserError, match="no tasks" if fits else r"needs trl 1\.6 or newer"):
        learn(tmp_path, tasks=[])
    wanted = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))[
        "project"
    ]["optional-dependencies"]["hf"]
    assert (
        Requirement(next(w for w in wanted if w.startswith("trl"))).specifier.contains(
            version, prereleases=True
        )
        == fits
    )


def test_users_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tasks"):
        learn(tmp_path, tasks=[])
    with pytest.raises(
        UserError, match=r"per_device_train_batch_size = 3 does not divide the batch of 16"
    ):
        learn(tmp_path, per_device_train_batch_size=3)
    with pytest.raises(UserError, match="no model folder"):
        learn(tmp_path, model=tmp_path / "nowhere")
    window = Prompts(load_prompt_set("gates"), history="window:2")
    with pytest.raises(UserError, match='history = "full"'):
        train(base_path(), tmp_path, Gates, TASKS, window, GrpoConfig(max_steps=1))
    with pytest.raises(UserError, match="diverged"):
        learn(tmp_path / "nan", learning_rate=1e30, max_steps=3)


@pytest.mark.slow
def test_it_improves_the_policy(tmp_path: Path) -> None:
    """Held-out tasks, where no rule is shifted: what bench/grpo.py measures, in small."""
    env = Gates("easy", "habit")
    rows: list[Mapping[str, Any]] = []
    config = GrpoConfig(limits={"policy_calls": 8000}, learning_rate=1e-3, eval_steps=100)
    train(
        base_path(),
        tmp_path,
        lambda: Gates("easy", "habit"),
        env.tasks("train", 200, 0),
        PROMPTS,
        config,
        validate=success_on(env.tasks("test", 100, 0), 32),
        progress=rows.append,
    )
    first, last = rows[0]["valid_success"], rows[-1]["valid_success"]
    assert last > first + 0.04, (first, last)
