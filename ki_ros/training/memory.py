"""How much memory of a GPU a training run needs, before any of it is taken.

Weights, gradients and optimiser state are counted exactly. What autograd keeps is found by running the model's own
layers on tensors without data, which take no memory, and adding up what they save for the backward pass. Not counted:
the CUDA context and libraries (about 1 GB), fragmentation, and the gradients of activations, which the memory of the
logits and of layers that are done covers. Leave a tenth of a GPU free.

Shapes: B batch, V views, P prefix tokens, F FAST tokens, S draws of noise, H action horizon, D action dimension.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ki_ros.model.config import KIConfig
from ki_ros.model.losses import LOGIT_ROWS
from ki_ros.model.model import KIModel
from ki_ros.model.paired import Tokens

Strategy = Literal["single", "ddp", "fsdp"]
"""One GPU; replicas with summed gradients; parameters, gradients and optimiser state in shards."""

MASTER_BYTES = 4
"""Bytes of a float32: master weights, gradients, each of Adam's two moments and averages are kept in it."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes on each GPU at the fullest moment of a step, which is where the backward pass begins.

    Attributes:
        strategy, batch_per_device, world_size: what the plan is for.
        parameters: float32 master weights, frozen ones too.
        gradients: of what trains. DDP holds no second copy of them if `gradient_as_bucket_view` is set.
        moments: Adam's two.
        averages: of the EMA.
        weight_copies: autocast's of matrices, in the dtype of computation, and what FSDP has gathered in float32: the
            weights that belong to no layer, those of a layer, and of the one that it prefetches.
        activations: what is kept for the backward pass.
        logits: of the FAST rows that are held at once, in the dtype of computation and in float32 the converted ones,
            their log-softmax and the gradient.
        working: the gradient of the largest parameter before it is added to the others; with FSDP the whole gradients
            of a layer and of what belongs to none, and the larger of them again, to be reduced.
    """

    strategy: Strategy
    batch_per_device: int
    world_size: int
    parameters: int
    gradients: int
    moments: int
    averages: int
    weight_copies: int
    activations: int
    logits: int
    working: int

    @property
    def total(self) -> int:
        """Sum of all parts [bytes]."""
        return sum(getattr(self, name) for name in PARTS)


PARTS = tuple(field.name for field in dataclasses.fields(MemoryPlan))[3:]
"""The parts of a plan that add up to its total."""


def plan_memory(
    config: KIConfig,
    *,
    batch_per_device: int,
    world_size: int,
    strategy: Strategy,
    ema: bool,
    trainable: Callable[[str], bool] | None = None,
    lora_parameters: int = 0,
    activation_checkpointing: bool,
    compute_dtype: torch.dtype,
    prompt_tokens: int,
    fast_tokens: int,
    views: int,
    flow_samples: int,
    autocast_cache: bool = True,
) -> MemoryPlan:
    """The memory that a run needs on each GPU.

    Args:
        config: of the model.
        batch_per_device: B of one forward and backward pass.
        world_size: GPUs.
        strategy: how they share the work. FSDP shards each paired layer, each SigLIP layer, and the rest together,
            which stays gathered between the passes.
        ema: whether an average of the weights is kept.
        trainable: which parameters train, by name; all if None.
        lora_parameters: number of further parameters that train. With them, every layer counts as if it trained, for
            adapters need the same activations.
        activation_checkpointing: whether layers, SigLIP's too, keep only their inputs and are run again.
        compute_dtype: of autocast; float32 for none.
        prompt_tokens, fast_tokens: length of the longest prompt and FAST sequence of a batch.
        views: cameras.
        flow_samples: draws of noise per sample.
        autocast_cache: whether autocast keeps its copies until the forward pass ends (`cache_enabled`), even those of
            layers that are run again and could do without.

    Raises:
        ValueError: a number that is no positive integer, a strategy that is not known or does not fit the number of
            GPUs, or nothing to train; names the argument.
    """
    sizes = {
        "batch_per_device": batch_per_device,
        "world_size": world_size,
        "prompt_tokens": prompt_tokens,
        "fast_tokens": fast_tokens,
        "views": views,
        "flow_samples": flow_samples,
    }
    for name, value in sizes.items():
        # Training on states alone has no views.
        if isinstance(value, bool) or not isinstance(value, int) or value < (0 if name == "views" else 1):
            raise ValueError(f"{name} is {value!r}; give a positive integer")
    if lora_parameters < 0:
        raise ValueError(f"lora_parameters is {lora_parameters}; give 0 or more")
    if strategy not in get_args(Strategy):
        raise ValueError(f"strategy is {strategy!r}; use one of {', '.join(get_args(Strategy))}")
    if strategy == "single" and world_size != 1:
        raise ValueError(f"world_size is {world_size}, but strategy is 'single'; use 'ddp' or 'fsdp', or one GPU")

    with torch.device("meta"):
        model = KIModel(config)
    trains = {name: trainable is None or trainable(name) for name, _ in model.named_parameters()}
    if not any(trains.values()) and not lora_parameters:
        raise ValueError("trainable leaves no parameter that trains, and lora_parameters is 0; train something")
    shards = world_size if strategy == "fsdp" else 1
    held = sum(_shard(p, shards) for p in model.parameters()) + -(-lora_parameters // shards)
    trained = sum(_shard(p, shards) for name, p in model.named_parameters() if trains[name])
    trained += -(-lora_parameters // shards)
    counts = _count(model, trains)
    copies = counts.cast(activation_checkpointing, autocast_cache) * _extra(compute_dtype)
    if strategy == "fsdp":
        unit = max(counts.units)
        copies += (counts.rest + 2 * unit) * MASTER_BYTES
        working = (counts.rest + unit + max(counts.rest, unit)) * MASTER_BYTES
    else:
        working = counts.largest_trained * (MASTER_BYTES + _extra(compute_dtype))
    activations = _activations(
        config,
        frozenset(name for name, flag in trains.items() if flag or lora_parameters > 0),
        activation_checkpointing=activation_checkpointing,
        compute_dtype=compute_dtype,
        batch=batch_per_device,
        prompt_tokens=prompt_tokens,
        fast_tokens=fast_tokens,
        views=views,
        flow_samples=flow_samples,
    )
    logits = min(batch_per_device * fast_tokens, LOGIT_ROWS) * config.language.vocab_size
    return MemoryPlan(
        strategy=strategy,
        batch_per_device=batch_per_device,
        world_size=world_size,
        parameters=held * MASTER_BYTES,
        gradients=trained * MASTER_BYTES,
        moments=2 * trained * MASTER_BYTES,
        averages=trained * MASTER_BYTES if ema else 0,
        weight_copies=copies,
        activations=activations,
        logits=logits * (3 * MASTER_BYTES + _extra(compute_dtype)),
        working=working,
    )


def largest_batch(budget: int, plan: Callable[[int], MemoryPlan]) -> int:
    """The largest batch per GPU whose plan needs no more than `budget` bytes; 0 if a batch of one needs more.

    Args:
        budget: bytes.
        plan: from a batch size to its plan, as `functools.partial` makes it of `plan_memory`.
    """
    one, two = plan(1).total, plan(2).total
    if one > budget:
        return 0
    # Memory grows by the same amount with each sample, so this is the answer, or beside it.
    batch = 1 + (budget - one) // max(two - one, 1)
    while batch > 1 and plan(batch).total > budget:
        batch -= 1
    return batch


def table(plans: Sequence[MemoryPlan]) -> Table:
    """Plans side by side, part by part, for rich to print [GB = 1e9 bytes]."""
    result = Table("GB per GPU", title="Memory")
    for plan in plans:
        gpus = "1 GPU" if plan.world_size == 1 else f"{plan.world_size} GPUs"
        result.add_column(f"{plan.strategy}, {gpus}, batch {plan.batch_per_device}", justify="right")
    for name in PARTS:
        result.add_row(name.replace("_", " "), *(f"{getattr(plan, name) / 1e9:.2f}" for plan in plans))
    result.add_section()
    result.add_row("total", *(f"{plan.total / 1e9:.2f}" for plan in plans), style="bold")
    return result


@dataclass(frozen=True)
class _Counts:
    """Numbers of parameters. A matrix is what autocast converts; a unit is a paired layer or one of SigLIP's.

    Attributes:
        largest_trained: the largest parameter that trains; 0 if none does.
        loose_matrices: outside units.
        trained_matrices, frozen_matrices: of each unit, those that train and those that do not.
        units: all parameters of each unit.
        rest: all parameters outside units.
    """

    largest_trained: int
    loose_matrices: int
    trained_matrices: tuple[int, ...]
    frozen_matrices: tuple[int, ...]
    units: tuple[int, ...]
    rest: int

    def cast(self, activation_checkpointing: bool, cache: bool) -> int:
        """How many parameters autocast has a copy of at once.

        Autograd keeps copies, but of a unit that is run again only until that is done. The cache keeps those that
        train, wherever they are.
        """
        units = tuple(zip(self.trained_matrices, self.frozen_matrices, strict=True))
        if not activation_checkpointing:
            return self.loose_matrices + sum(map(sum, units))
        if not cache:
            return self.loose_matrices + max(map(sum, units))
        return self.loose_matrices + sum(self.trained_matrices) + max(self.frozen_matrices)


def _count(model: KIModel, trains: dict[str, bool]) -> _Counts:
    names = {parameter: name for name, parameter in model.named_parameters()}
    linear = {p for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d) for p in m.parameters()}
    matrices = {p for p in linear if _is_cast(names[p])}
    matrices.add(model.paligemma_with_expert.backbone.language_model.embed_tokens.weight)
    units = [set(unit.parameters()) for unit in _units(model)]
    inside = set().union(*units)
    train = {p for p, name in names.items() if trains[name]}
    return _Counts(
        largest_trained=max((p.numel() for p in train), default=0),
        loose_matrices=_elements(matrices - inside),
        trained_matrices=tuple(_elements(matrices & unit & train) for unit in units),
        frozen_matrices=tuple(_elements((matrices & unit) - train) for unit in units),
        units=tuple(map(_elements, units)),
        rest=_elements(names.keys() - inside),
    )


def _is_cast(name: str) -> bool:
    """Whether autocast converts a matrix of that name; the small layers of times, actions and modulation are left."""
    return KIModel.parameter_dtype(name, torch.bfloat16) is torch.bfloat16


def _elements(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)


@functools.lru_cache
def _activations(
    config: KIConfig,
    trained: frozenset[str],
    *,
    activation_checkpointing: bool,
    compute_dtype: torch.dtype,
    batch: int,
    prompt_tokens: int,
    fast_tokens: int,
    views: int,
    flow_samples: int,
) -> int:
    """Bytes that autograd keeps of a forward pass, logits aside, where the parameters of these names train.

    With checkpointing these are the inputs of all units and the inside of the largest, which is run again.
    """
    with torch.device("meta"):
        model = KIModel(config)
    transformer = model.paligemma_with_expert
    backbone = transformer.backbone
    saved = _Saved(_units(model))
    with FakeTensorMode(), torch.autocast("cpu", compute_dtype, enabled=compute_dtype != torch.float32):
        _empty_parameters(model, trained, compute_dtype)
        model.train()
        with saved:
            side = config.vision.image_size
            prompt = backbone.language_model.embed(torch.zeros(batch, prompt_tokens, dtype=torch.int64))
            prefix = prompt
            if views:
                images = backbone.embed_images(torch.empty(views * batch, 3, side, side))
                prefix = torch.cat((*images.chunk(views), prompt.to(images.dtype)), dim=1)
            fast = backbone.language_model.embed(torch.zeros(batch, fast_tokens, dtype=torch.int64)).to(prefix.dtype)
            actions = torch.empty(batch, flow_samples * config.action_horizon, config.action_dim)
            condition = model.condition(torch.empty(batch * flow_samples)).unflatten(0, (batch, flow_samples))
            outputs = transformer.joint(
                prefix,
                torch.ones(prefix.shape[:2], dtype=torch.bool),
                fast,
                torch.ones(fast.shape[:2], dtype=torch.bool),
                # The expert's tokens have the dtype of its master weights.
                model.action_in_proj(actions).float(),
                condition,
                draws=flow_samples,
                rows=torch.zeros(batch, fast_tokens, dtype=torch.int64),
                insulated=config.knowledge_insulation,
            )
            model.action_out_proj(outputs[1])
    return saved.checkpointed() if activation_checkpointing else saved.everything()


def _empty_parameters(model: KIModel, trained: frozenset[str], compute_dtype: torch.dtype) -> None:
    """Parameters without data in place of the model's; matrices in the dtype that autocast would convert them to.

    So they are all parameters still, and none of their copies is taken for an activation.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    for module in model.modules():
        linear = isinstance(module, nn.Linear | nn.Conv2d)
        for key, parameter in module.named_parameters(recurse=False):
            dtype = compute_dtype if linear and _is_cast(names[parameter]) else torch.float32
            empty = torch.empty(parameter.shape, dtype=dtype)
            module.register_parameter(key, nn.Parameter(empty, requires_grad=names[parameter] in trained))
    model.paligemma_with_expert.backbone.vision_tower.materialize_buffers("cpu")


class _Saved:
    """Counts what autograd saves inside its block: each storage once, parameters left out, by the unit that saved it.

    Storages are kept, and with them their identities: nothing can take the place of a freed one.
    """

    def __init__(self, units: list[nn.Module]) -> None:
        self._units = units
        self._owner: int | None = None
        self._storages: dict[int, tuple[Any, int | None]] = {}
        self._inputs: dict[int, Any] = {}
        self._handles: list[Any] = []
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def __enter__(self) -> None:
        for index, unit in enumerate(self._units):
            self._handles += [
                unit.register_forward_pre_hook(self._enter_unit(index), with_kwargs=True),
                unit.register_forward_hook(self._leave_unit),
            ]
        self._hooks.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        for handle in self._handles:
            handle.remove()

    def everything(self) -> int:
        """Bytes of all that was saved."""
        return sum(storage.nbytes() for storage, _ in self._storages.values())

    def checkpointed(self) -> int:
        """Bytes saved outside units, of the units' inputs, and of the unit that saved most."""
        outside = {key: storage for key, (storage, owner) in self._storages.items() if owner is None}
        units = [0] * len(self._units)
        for storage, owner in self._storages.values():
            if owner is not None:
                units[owner] += storage.nbytes()
        return sum(storage.nbytes() for storage in (outside | self._inputs).values()) + max(units)

    def _pack(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not _is_view_of_parameter(tensor):
            storage = tensor.untyped_storage()
            self._storages.setdefault(storage._cdata, (storage, self._owner))
        return tensor

    def _enter_unit(self, index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._owner = index
            for value in (*args, *kwargs.values()):
                tensor = value.x if isinstance(value, Tokens) else value
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    self._inputs[storage._cdata] = storage

        return hook

    def _leave_unit(self, *_: Any) -> None:
        self._owner = None


def _is_view_of_parameter(tensor: Tensor) -> bool:
    return isinstance(tensor._base, nn.Parameter)


def _units(model: KIModel) -> list[nn.Module]:
    """The paired layers and SigLIP's, each of which is sharded and checkpointed as a whole."""
    transformer = model.paligemma_with_expert
    return [*transformer.pairs, *transformer.backbone.vision_tower.vision_model.encoder.layers]


def _shard(parameter: Tensor, shards: int) -> int:
    """Most elements that one of so many shards along the first dimension has."""
    return -(-parameter.shape[0] // shards) * (parameter.numel() // parameter.shape[0])


def _extra(compute_dtype: torch.dtype) -> int:
    """Bytes of a value's copy in the dtype of computation, which float32 needs none of."""
    return 0 if compute_dtype == torch.float32 else compute_dtype.itemsize
