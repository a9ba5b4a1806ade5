"""Several processes, one run: the process group, and how the model is spread over it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from ki_ros.model.model import KIModel

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others: one may be writing a checkpoint."""


@dataclass(frozen=True)
class World:
    """This process among all: its rank, their number, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Sums over all processes, in float64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def barrier(self) -> None:
        """Waits for all."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def world(device: str) -> Iterator[World]:
    """The process group that torchrun describes in the environment, or this process alone.

    A process leaves it when all have come to its end; one that fails leaves at once.

    Raises:
        ValueError: a device that cannot be used.
        RuntimeError: at the end, another process has failed.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used ({str(error).splitlines()[0]}); try cpu") from error
    chosen = torch.device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1 and "MASTER_ADDR" not in os.environ:
        yield World(rank, size, chosen)
        return
    if chosen.type == "cuda":
        dist.init_process_group("nccl", timeout=TIMEOUT, device_id=chosen)
    else:
        dist.init_process_group("gloo", timeout=TIMEOUT)
    processes = World(rank, size, chosen)
    try:
        yield processes
        # A process whose connections are closed while it still talks fails, with all its work done. Not where this one
        # fails: the others wait for it in some collective, and learn of it by its connections, or from torchrun.
        processes.barrier()
    finally:
        dist.destroy_process_group()


class TrainingModule(nn.Module):
    """A KIModel's parameters in the tree that sharding wants: one module per paired layer, and the rest.

    The model itself is no part of the tree. Its modules are the same objects, so its parameters keep openpi's names,
    sharded or not.
    """

    def __init__(self, model: KIModel) -> None:
        super().__init__()
        transformer = model.paligemma_with_expert
        language = transformer.backbone.language_model
        self.pairs = nn.ModuleList(transformer.pairs)
        self.rest = nn.ModuleList(
            [
                transformer.backbone.vision_tower,
                transformer.backbone.multi_modal_projector,
                language.embed_tokens,
                language.norm,
                transformer.expert.norm,
                model.action_in_proj,
                model.action_out_proj,
                model.time_mlp_in,
                model.time_mlp_out,
            ]
        )
        self._model = (model,)
        if {id(p) for p in self.parameters()} != {id(p) for p in model.parameters()}:
            raise RuntimeError("the model has parameters that its training tree lacks")

    @property
    def model(self) -> KIModel:
        """The model."""
        return self._model[0]

    def forward(self, method: str, *args: Any, **options: Any) -> Any:
        """A method of the model. All use of a sharded model goes through here: this is where it is gathered."""
        return getattr(self.model, method)(*args, **options)


class Parallel:
    """A model as one process holds it, and how it is called.

    Args:
        model: on its device, whole; the same weights in every process.
        world: the processes.
        strategy: "single", "ddp" or "fsdp".
        unused_parameters: whether a pass may leave trained parameters out, as data without views do.
    """

    def __init__(self, model: KIModel, world: World, strategy: str, *, unused_parameters: bool) -> None:
        self.model = model
        self.strategy = strategy
        self._world = world
        module = TrainingModule(model)
        self._module: nn.Module = module
        if strategy == "fsdp":
            mesh = init_device_mesh(world.device.type, (world.size,))
            for layer in model.paligemma_with_expert.backbone.vision_tower.vision_model.encoder.layers:
                fully_shard(layer, mesh=mesh)
            for pair in module.pairs:
                fully_shard(pair, mesh=mesh)
            fully_shard(module, mesh=mesh)
        elif strategy == "ddp":
            self._module = DistributedDataParallel(
                module,
                device_ids=[world.device] if world.device.type == "cuda" else None,
                find_unused_parameters=unused_parameters,
                gradient_as_bucket_view=True,
            )
        self._sharded = module

    def loss(self, *args: Any, last: bool, **options: Any) -> Any:
        """`KIModel.compute_loss`. With "ddp", gradients are exchanged only after the last pass of a step.

        With "fsdp" they are after every pass: kept until the last, they would be as large as the whole model.
        """
        if isinstance(self._module, DistributedDataParallel):
            # What backward does is decided in the forward pass.
            self._module.require_backward_grad_sync = last
        return self._module("compute_loss", *args, **options)

    def call(self, method: str, *args: Any, **options: Any) -> Any:
        """A method of the model without gradients; with "fsdp", in all processes at once."""
        with torch.no_grad():
            return self._sharded(method, *args, **options)

    def modules(self) -> Iterator[nn.Module]:
        """All modules of the tree that is sharded."""
        return self._sharded.modules()

    @property
    def gradient_scale(self) -> float:
        """Factor of a loss whose gradients are to be summed over the processes: both engines take their mean."""
        return float(self._world.size)


def gather(tensor: Tensor) -> Tensor:
    """A tensor whole, sharded or not. With shards, all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def scatter_like(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, on the device and with the sharding of another."""
    whole = whole.to(device=like.device, dtype=like.dtype)
    if isinstance(like, DTensor):
        return distribute_tensor(whole, like.device_mesh, like.placements)
    return whole
