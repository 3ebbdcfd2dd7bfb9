"""How a model lies on its ranks: replicated by torch's DDP, or sharded by FSDP2 over a mesh.

Gradients are summed over ranks, never averaged (the convention of `multicoca.model.losses`): DDP, which averages,
gets the loss times the number of ranks; FSDP2 is told to sum. All ranks run the same modality in a micro-batch, so
that the collectives of a forward and backward pass are the same on all. Order of wrappers: compile, activation
checkpointing, sharding.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from multicoca.distributed.collectives import broadcast_parameters, world_size
from multicoca.nn.linear import Linear

STRATEGIES = ("ddp", "fsdp")
# of a kind of block, beyond which torch warns and runs it plainly: there is one for each modality, with gradients and
# without, with a mask and without, for one length and for any
_GRAPHS = 64


@dataclass(frozen=True)
class ParallelConfig:
    """How ranks share a model.

    Attributes:
        strategy: "ddp", a copy on every rank, or "fsdp", parameters, gradients and optimizer state in shards.
        replicate: copies of the model with fsdp; with more than one, ranks form a mesh of replicate x shard (HSDP).
            None takes world size / shard, 1 if that is not set either.
        shard: ranks that share a copy with fsdp; None takes world size / replicate.
        reshard_after_forward: with fsdp, parameters are freed between forward and backward (ZeRO-3), or kept (ZeRO-2).
        bf16_parameters: with fsdp on GPUs and bf16 autocast, blocks gather their parameters in bf16; gradients are
            reduced in fp32, and what lies outside of blocks, heads and temperatures above all, stays fp32.
        checkpoint_activations: blocks keep their inputs only and run again in the backward pass.
        compile: compile each block.
        timeout_s: a collective that takes longer has lost a rank.
    """

    strategy: str = "ddp"
    replicate: int | None = None
    shard: int | None = None
    reshard_after_forward: bool = True
    bf16_parameters: bool = False
    checkpoint_activations: bool = False
    compile: bool = False
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise ValueError(f"parallel.strategy is '{self.strategy}'; choose one of {', '.join(STRATEGIES)}")
        for name, ranks in (("replicate", self.replicate), ("shard", self.shard)):
            if ranks is not None and ranks < 1:
                raise ValueError(f"parallel.{name} is {ranks}; expected at least 1, or none")
        if not self.timeout_s > 0:
            raise ValueError(f"parallel.timeout_s is {self.timeout_s}; expected a number of seconds above 0")


def mesh_sizes(config: ParallelConfig, ranks: int) -> tuple[int, int]:
    """Returns (copies of the model, ranks that share one).

    Raises:
        ValueError: the sizes do not multiply to the number of ranks.
    """
    if config.strategy == "ddp":
        return ranks, 1
    replicate, shard = config.replicate, config.shard
    if replicate is None:
        replicate = 1 if shard is None else ranks // max(shard, 1)
    if shard is None:
        shard = ranks // max(replicate, 1)
    if replicate < 1 or shard < 1 or replicate * shard != ranks:
        raise ValueError(
            f"parallel.replicate {config.replicate} and parallel.shard {config.shard} do not multiply to the number of "
            f"processes, {ranks}; set sizes that do, or leave one of them out"
        )
    return replicate, shard


@dataclass(frozen=True)
class Engine:
    """A model that is ready to be trained on its ranks.

    Attributes:
        model: whose parameters are trained; sharded ones are DTensors.
        forward: call it instead of the model, so that gradients are reduced.
        gradient_factor: what every loss is multiplied with before its backward pass, so that gradients sum over ranks.
        is_sharded: whether parameters are DTensors.
        uses_all: whether DDP relies on gradients for all trained parameters in every backward pass.
    """

    model: Any
    forward: nn.Module
    gradient_factor: int = 1
    is_sharded: bool = False
    uses_all: bool = False

    def reducing(self, now: bool) -> AbstractContextManager[None]:
        """Context of a forward and backward pass; DDP reduces once, in the last one of a step, and FSDP2 in each."""
        if now or not isinstance(self.forward, DistributedDataParallel):
            return nullcontext()
        return self.forward.no_sync()


def parallelize(
    model: Any,
    config: ParallelConfig,
    device: torch.device,
    autocast: torch.dtype | None = None,
    uses_all: bool = False,
) -> Engine:
    """Makes a model ready for training on all ranks; each of them calls it with the same weights or other ones.

    Those of rank 0 count.

    Args:
        model: a CoCa on its device.
        config: how ranks share it.
        device: of this rank.
        autocast: the dtype that it will be trained in, None for fp32.
        uses_all: whether every backward pass reaches every trained parameter, as with one modality and both losses;
            DDP then does not search for unused parameters, nor warn that it found none.

    Raises:
        ValueError: the mesh does not fit the number of ranks.
    """
    replicate, shard = mesh_sizes(config, world_size())
    blocks = model.blocks
    if config.compile:
        limits = torch._dynamo.config
        limits.recompile_limit = max(limits.recompile_limit, _GRAPHS)
    for block in blocks:
        if config.compile:  # not `block.compile()`, whose graph would break at the hooks of what comes around it
            block.forward = torch.compile(block.forward)
        if config.checkpoint_activations:
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    if config.strategy == "fsdp" and not dist.is_initialized():
        warnings.warn("parallel.strategy is fsdp, but one process has nobody to share with: it trains as ddp does",
                      stacklevel=2)  # fmt: skip
    elif config.strategy == "fsdp":
        broadcast_parameters(model)
        # torch's norms on the CPU take no bf16 parameters with the fp32 stream between blocks
        narrow = config.bf16_parameters and autocast == torch.bfloat16 and device.type == "cuda"
        axes = {"replicate": replicate, "shard": shard} if replicate > 1 else {"shard": shard}
        mesh = init_device_mesh(device.type, tuple(axes.values()), mesh_dim_names=tuple(axes))
        _shard(model, blocks, mesh, config.reshard_after_forward, narrow)
        return Engine(model, model, is_sharded=True)
    if world_size() == 1:
        return Engine(model, model)
    on = [device] if device.type == "cuda" else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.*")  # its new name came with torch 2.15
        wrapped = DistributedDataParallel(
            model,
            device_ids=on,
            broadcast_buffers=False,
            find_unused_parameters=not uses_all,
            gradient_as_bucket_view=True,
        )
    return Engine(model, wrapped, gradient_factor=world_size(), uses_all=uses_all)


def _shard(model: Any, blocks: list[nn.Module], mesh: DeviceMesh, reshard_after_forward: bool, narrow: bool) -> None:
    policy = MixedPrecisionPolicy()
    if narrow:
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard_after_forward)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other; NCCL is as fast
        if isinstance(module, Linear):
            module.may_pack = False
    for name in model.forward_methods:
        register_fsdp_forward_method(model, name)
        if narrow:  # blocks are bf16 outside of training steps, too
            setattr(model, name, torch.autocast(mesh.device_type, torch.bfloat16)(getattr(model, name)))
    model.in_step = True
