"""One training on several processes, as accelerate is configured: data-parallel, FSDP2, DeepSpeed,
or a single process.

The model is prepared inside a wrapper whose forward runs any function of the bare model. Its layers
and output layer may be called there as often as the loss needs, with sharded parameters gathered.
Tensors are gathered and sharded here alone; all other code sees them whole. Processes hold shares
of one sum while accelerate averages their gradients: hence the factor in `backward`.
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


class FunctionWrapper(torch.nn.Module):
    """Runs functions of the model in its own forward: `wrapper(function, *arguments)` is
    `function(model, *arguments)`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        # the layers that accelerate shards
        self._no_split_modules = getattr(model, "_no_split_modules", None)

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.model, *arguments)

    def tie_weights(self) -> None:
        self.model.tie_weights()


class SingleProcess:
    """One process that holds everything."""

    main = True
    deepspeed = False
    sharded = False

    def wait(self) -> None:
        """Until all processes are here."""

    def broadcast(self, value: _T) -> _T:
        """The main process's value, on every process."""
        return value

    def weights(self, wrapper: Any, trained: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """The trained parameters, gathered one after the other; all processes must iterate."""
        yield from ((name, gathered(parameter)) for name, parameter in trained.items())

    def reshard(self, wrapper: Any) -> None:
        """Drop gathered copies of an earlier forward pass, before parameters are overwritten."""


class Parallel(SingleProcess):
    """The accelerator, and the few things that it leaves to its users.

    Args:
        **options: For `Accelerator`.

    Raises:
        UserError: FSDP1, which cannot call parts of a model, or fp16.
    """

    def __init__(self, **options: Any) -> None:
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available(), **options)
        # this state is global: a TRL training that ended between two steps leaves it such that no
        # optimiser takes a step any more
        self.accelerator.gradient_state._set_sync_gradients(True)
        state = self.accelerator.state
        if (
            self.accelerator.distributed_type is DistributedType.MULTI_CPU
            and os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
        ):
            # accelerate enables FSDP on accelerators alone; torch has it on a CPU too
            state.fsdp_plugin = FullyShardedDataParallelPlugin()
            state.distributed_type = PartialState().distributed_type = DistributedType.FSDP
        kind = self.accelerator.distributed_type
        if self.accelerator.scaler is not None:
            raise UserError(
                "accelerate's config sets mixed_precision: fp16, whose scaled gradients are not "
                "supported: use bf16 or no."
            )
        if kind is DistributedType.FSDP and not self.accelerator.is_fsdp2:
            raise UserError(
                "accelerate's config uses FSDP version 1, which is not supported: set "
                "fsdp_version: 2."
            )
        self.deepspeed = kind is DistributedType.DEEPSPEED
        """Its engine keeps weights and moments in a form of its own, clips, and takes the step in
        `backward`."""
        self.sharded = self.deepspeed or bool(self.accelerator.is_fsdp2)
        """Whether no process holds the whole model: all processes take part in every forward."""
        self.device: torch.device = self.accelerator.device
        self.main: bool = self.accelerator.is_main_process
        self.processes: int = self.accelerator.num_processes
        self.rank: int = self.accelerator.process_index

    def prepare(self, model: Any, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
        """The model in a `FunctionWrapper`, ready to train, and the optimiser over its
        parameters."""
        if self.deepspeed:  # a forward pass holds what we put into it
            plugin = self.accelerator.state.deepspeed_plugin
            plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = 1
        wrapper, prepared = self.accelerator.prepare(FunctionWrapper(model), optimizer)
        return wrapper, prepared

    def prepare_frozen(self, model: Any) -> Callable[[], AbstractContextManager[Any]]:
        """A frozen copy, sharded if the trained model is, as a context that gives the bare model,
        ready to be called in parts."""
        model.eval().requires_grad_(False)
        if not self.sharded or self.deepspeed:
            model.to(self.device)
            return lambda: nullcontext(model)
        wrapper = fsdp2_prepare_model(self.accelerator, FunctionWrapper(model))

        @contextmanager
        def start() -> Iterator[Any]:
            wrapper(lambda model: None)  # gathers the parameters that belong to no layer
            yield model

        return start

    def reshard(self, wrapper: Any) -> None:
        if not self.sharded or self.deepspeed:
            return
        for module in wrapper.modules():
            # the outermost module, and by configuration all, stay gathered after a forward pass
            if isinstance(module, FSDPModule):
                module.set_reshard_after_forward(True, recurse=False)
                module.reshard()
                inner = module is not wrapper
                module.set_reshard_after_forward(
                    inner and self.accelerator.state.fsdp_plugin.reshard_after_forward,
                    recurse=False,
                )

    def backward(
        self, wrapper: Any, last: bool, losses: Callable[[], Tensor], weights_P: Tensor
    ) -> Tensor:
        """Run `losses` and the backward pass of its weighted sum; add to the gradients.

        Processes exchange gradients with the last pass, or if they are sharded with each.

        Returns:
            losses_P, without their gradient.
        """
        if self.deepspeed:  # it takes its step with the last pass
            self.accelerator.gradient_state._set_sync_gradients(last)
        with nullcontext() if last or self.sharded else self.accelerator.no_sync(wrapper):
            losses_P = losses()
            self.accelerator.backward((losses_P * weights_P).sum() * self.processes)
        return losses_P.detach()

    def clip(self, trained: Iterable[Tensor], max_norm: float) -> float:
        """Clip the gradients (DeepSpeed: by its own setting); returns their norm before that."""
        if self.deepspeed:
            return float(self.accelerator.clip_grad_norm_(trained, max_norm))
        return float(gathered(torch.nn.utils.clip_grad_norm_(trained, max_norm)))

    def sum(self, tensor: Tensor) -> Tensor:
        """Over all processes."""
        return self.accelerator.reduce(tensor, "sum")

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()

    def broadcast(self, value: _T) -> _T:
        values = [value]
        if self.processes > 1:
            broadcast_object_list(values)
        return values[0]

    def weights(self, wrapper: Any, trained: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        if self.deepspeed:
            state = self.accelerator.get_state_dict(wrapper)
            yield from ((name, state[f"model.{name}"]) for name in trained)
        else:
            yield from super().weights(wrapper, trained)


def gathered(tensor: Tensor) -> Tensor:
    """A tensor that may be sharded, in one piece; all processes must call it."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The whole `value`, placed and sharded as the parameter is; all processes give the same
    value."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(
            value, parameter.device_mesh, parameter.placements, src_data_rank=None
        )
    return value


def bare_name(name: str) -> str:
    """A parameter's name in the bare model, without what wrappers insert."""
    return name.replace("_checkpoint_wrapped_module.", "").replace("_orig_mod.", "")
