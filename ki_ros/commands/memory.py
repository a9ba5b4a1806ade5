"""`ki-ros train --dry-run`: what a run needs in memory, before anything is allocated."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from ki_ros.files import write_json
from ki_ros.model.config import KIConfig
from ki_ros.model.model import KIModel
from ki_ros.training.build import resolve_model, set_trained
from ki_ros.training.config import DroidData, TrainConfig
from ki_ros.training.memory import MemoryPlan, largest_batch, plan_memory, table

WORLD_SIZES = (2, 4, 8)
BUDGETS = {"24 GB": 22.5e9, "80 GB": 78e9, "141 GB": 138e9}
"""GPUs by their memory, and what of it a run can use [byte]."""

console = Console()


def show_memory(config: TrainConfig, json: Path | None) -> int:
    """Prints tables of plans; returns the exit status. Prompts and FAST sequences count at their longest.

    Raises:
        ValueError: a model that cannot be resolved.
    """
    model = resolve_model(config)
    trained, adapters = _trained(config, model)
    views = len(config.data.views) if isinstance(config.data, DroidData) else 2
    plan = partial(
        plan_memory,
        model,
        ema=config.ema_decay is not None,
        trainable=trained.__contains__,
        lora_parameters=adapters,
        activation_checkpointing=config.activation_checkpointing,
        compute_dtype=torch.bfloat16 if config.precision == "bfloat16" else torch.float32,
        prompt_tokens=model.max_token_len,
        fast_tokens=config.fast_max_tokens,
        views=views,
        flow_samples=config.flow_samples,
        autocast_cache=not config.activation_checkpointing,
    )
    ways = [("single", 1), *((strategy, size) for strategy in ("ddp", "fsdp") for size in WORLD_SIZES)]
    plans: list[MemoryPlan] = []
    for strategy, size in ways:
        if config.batch_size % size:
            console.print(f"{strategy} on {size}: batch_size {config.batch_size} is no multiple of {size}; left out")
            continue
        batch = config.micro_batch_size or config.batch_size // size
        plans.append(plan(batch_per_device=batch, world_size=size, strategy=strategy))
    # DDP needs the same on every GPU but for its share of the batch, so its table is one column.
    console.print(table([p for p in plans if p.strategy == "single" or p.world_size in (2, 8)]))
    fits = {}
    for strategy, size in (("single", 1), ("ddp", 8), ("fsdp", 8)):
        largest = {
            name: largest_batch(
                int(budget),
                lambda batch, s=strategy, w=size: plan(batch_per_device=batch, world_size=w, strategy=s),
            )
            for name, budget in BUDGETS.items()
        }
        fits[f"{strategy}, {size} GPU{'s' if size > 1 else ''}"] = largest
        said = ", ".join(f"{batch or 'none'} on {name}" for name, batch in largest.items())
        console.print(f"largest batch of one pass per GPU, {strategy} on {size}: {said}", highlight=False)
    console.print("A plan, not a measurement: it leaves out the CUDA context and fragmentation, a few GB.")
    if json is not None:
        write_json(json, {"plans": [asdict(p) | {"total": p.total} for p in plans], "largest_batch": fits})
    return 0


def _trained(config: TrainConfig, model_config: KIConfig) -> tuple[set[str], int]:
    """Names of what is trained of the model's own parameters, and how many adapters' weights there are beside them."""
    with torch.device("meta"):
        model = KIModel(model_config)
        set_trained(model, config)
    names = {name for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name}
    adapters = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    return names, adapters
