"""One training on several processes, by whatever accelerate was told: data-parallel, FSDP2,
DeepSpeed, or a single process.

The model is prepared inside a wrapper, in whose forward any function of the bare model runs: its
layers and its output layer may be called there as often as
the loss wants, and parameters that are sharded are whole while it does. Tensors are gathered and
sharded here alone; everything else sees them whole.
Processes hold shares of one sum, while accelerate averages their gradients: hence the factor in
`backward`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, broadcast_object_list
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from leafe.core import UserError

_T = TypeVar("_T")


class Inside(torch.nn.Module):
    """Runs functions of the model in its own forward: `inside(function, *arguments)` is
    `function(model, *arguments)`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._no_split_modules = getattr(
            model, "_no_split_modules", None
        )  # what accelerate shards by itself

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)

    def tie_weights(self) -> None:
        self.model.tie_weights()


class Alone:
    """One process, which holds everything."""

    main = True
    foreign = False
    sharded = False

    def wait(self) -> None:
        """Until all processes are here."""

    def agreed(self, value: _T) -> _T:
        """The main process's value, on every process."""
        return value

    def weights(self, inside: Any, trained: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The trained parameters, whole, one after the other; every process has to ask."""
        yield from ((name, whole(parameter)) for name, parameter in trained.items())

    def settle(self, inside: Any) -> None:
        """Before parameters are written to from outside: no copy of them may be left of an earlier
        forward pass."""


class Parallel(Alone):
    """What accelerate is asked, and the few things that it leaves to its users."""

    def __init__(self, **options: Any) -> None:
        """Options go to `Accelerator`. UserError for FSDP1, which cannot call parts of a model."""
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), **options)
        # of the process, not of the accelerator: a training of TRL's that was ended between two
        # steps leaves it such that no optimiser takes a step any more
        self.accelerator.gradient_state._set_sync_gradients(True)
        state = self.accelerator.state
        if (
            self.accelerator.distributed_type is DistributedType.MULTI_CPU
            and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        ):
            # accelerate asks for FSDP on accelerators alone; torch has it on a CPU too
            state.fsdp_plugin = FullyShardedDataParallelPlugin()
            state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        kind = self.accelerator.distributed_type
        if self.accelerator.scaler is not None:
            raise UserError(
                "accelerate was told mixed_precision: fp16, whose scaled gradients the "
                "training does not know: take bf16 or no."
            )
        if kind is DistributedType.FSDP and not self.accelerator.is_fsdp2:
            raise UserError(
                "accelerate was told to use FSDP's version 1: set fsdp_version: 2 in its "
                "config file."
            )
        self.foreign = kind is DistributedType.DEEPSPEED
        """DeepSpeed: the engine holds weights and moments in a form that it alone can read, clips,
        and takes the step in `backward`."""
        self.sharded = self.foreign or bool(self.accelerator.is_fsdp2)
        """Whether no process holds the whole model: every forward is one that all processes
        make."""
        self.device: torch.device = self.accelerator.device
        self.main: bool = self.accelerator.is_main_process
        self.processes: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index

    def prepare(self, model: Any, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """(the model, `Inside` and ready to train; the optimiser over its parameters as they are
        now)."""
        if self.foreign:
            self.accelerator.state.deepspeed_plugin.deepspeed_config[
                "train_micro_batch_size_per_gpu"
            ] = 1  # a forward pass is what we say it is
        inside, prepared = self.accelerator.prepare(Inside(model), optimizer)
        return inside, prepared

    def prepare_frozen(self, model: Any) -> Callable[[], AbstractContextManager[Any]]:
        """A copy that only reads, sharded where the trained model is; as a context that gives the
        bare model, ready to be called in parts."""
        model.eval().requires_grad_(False)
        if not self.sharded or self.foreign:
            model.to(self.device)
            return lambda: nullcontext(model)
        inside = fsdp2_prepare_model(self.accelerator, Inside(model))

        @contextmanager
        def start() -> Iterator[Any]:
            inside(_nothing)  # its forward makes whole what belongs to no layer
            yield model

        return start

    def settle(self, inside: Any) -> None:
        if not self.sharded or self.foreign:
            return
        for module in inside.modules():
            if isinstance(
                module,
                FSDPModule,
                # the outermost one, and where the config says so all, stay gathered after a forward
                # pass
            ):
                module.set_reshard_after_forward(True, recurse=False)
                module.reshard()
                module.set_reshard_after_forward(
                    module is not inside
                    and self.accelerator.state.fsdp_plugin.reshard_after_forward,
                    recurse=False,
                )

    def backward(
        self, inside: Any, last: bool, losses: Callable[[], Tensor], weights_P: Tensor
    ) -> Tensor:
        """Run `losses` and the backward pass of its weighted sum; the losses_P, without their
        gradient.

        Gradients of several passes add up. Processes exchange them with the last one, or where they
        are sharded with each.
        """
        if self.foreign:
            self.accelerator.gradient_state._set_sync_gradients(
                last
            )  # it takes its step with the last
        with nullcontext() if last or self.sharded else self.accelerator.no_sync(inside):
            losses_P = losses()
            self.accelerator.backward((losses_P * weights_P).sum() * self.processes)
        return losses_P.detach()

    def clip(self, trained: Iterable[Tensor], most: float) -> float:
        """Scale the gradients down to the norm `most`; their norm before that."""
        if self.foreign:
            return float(
                self.accelerator.clip_grad_norm_(trained, most)
            )  # done by the engine, by its own setting
        norm = torch.nn.utils.clip_grad_norm_(trained, most)
        return float(whole(norm))

    def sum(self, tensor: Tensor) -> Tensor:
        """Over all processes."""
        return self.accelerator.reduce(tensor, "sum")

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def agreed(self, value: _T) -> _T:
        found = [value]
        if self.processes > 1:
            broadcast_object_list(found)
        return found[0]

    def weights(self, inside: Any, trained: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        if self.foreign:
            state = self.accelerator.get_state_dict(inside)
            yield from ((name, state[f"model.{name}"]) for name in trained)
        else:
            yield from super().weights(inside, trained)


def whole(tensor: Tensor) -> Tensor:
    """A tensor that processes may hold in shards, in one piece; every process has to ask."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """The whole `value`, placed and sharded as the parameter is; every process gives the same
    value."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(
            value, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    return value


def own_name(name: str) -> str:
    """A parameter's name in the bare model, without what wrappers put in."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")


def _nothing(model: Any) -> None:
    return None
