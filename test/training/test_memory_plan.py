"""The plan against parameters counted by hand and memory that PyTorch's allocator really holds."""

from __future__ import annotations

import functools

import pytest
import torch
from rich.console import Console
from torch.profiler import ProfilerActivity, profile

from ki_ros.model.config import KIConfig
from ki_ros.model.model import KIModel, is_backbone
from ki_ros.model.observation import Observation
from ki_ros.rig import POLICY_SLOTS
from ki_ros.training.memory import largest_batch, plan_memory, table

TINY = KIConfig.from_preset("ki_tiny")
SHAPES = {"prompt_tokens": 50, "fast_tokens": 30, "views": 1, "flow_samples": 2}
RUN = {
    "batch_per_device": 2,
    "world_size": 1,
    "strategy": "single",
    "ema": True,
    "activation_checkpointing": False,
    "compute_dtype": torch.float32,
    **SHAPES,
}
plan_tiny = functools.partial(plan_memory, TINY)


@pytest.fixture(scope="module")
def model() -> KIModel:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return KIModel(TINY).train()


def set_checkpointing(model: KIModel, on: bool) -> None:
    for pair in model.paligemma_with_expert.pairs:
        pair.activation_checkpointing = on
    vision = model.paligemma_with_expert.backbone.vision_tower.vision_model
    if on:
        vision.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        vision.gradient_checkpointing_disable()


def held_after_forward(model: KIModel, batch: int, compute_dtype: torch.dtype) -> int:
    """Bytes allocated and not freed by a forward pass whose loss is kept: what the backward pass needs."""
    slots = POLICY_SLOTS[: SHAPES["views"]]
    prompt, fast = (batch, SHAPES["prompt_tokens"]), (batch, SHAPES["fast_tokens"])
    observation = Observation(
        images={slot: torch.rand(batch, 3, 224, 224) for slot in slots},
        image_masks={slot: torch.ones(batch, dtype=torch.bool) for slot in slots},
        state=torch.zeros(batch, 8),
        tokenized_prompt=torch.ones(prompt, dtype=torch.int64),
        tokenized_prompt_mask=torch.ones(prompt, dtype=torch.bool),
        fast_action_tokens=torch.ones(fast, dtype=torch.int64),
        fast_action_mask=torch.ones(fast, dtype=torch.bool),
    )
    actions = torch.zeros(batch, TINY.action_horizon, TINY.action_dim)
    autocast = torch.autocast("cpu", compute_dtype, enabled=compute_dtype != torch.float32)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded, autocast:
        loss = model.compute_loss(observation, actions, flow_samples=SHAPES["flow_samples"]).loss
    assert loss.requires_grad
    return sum(event.self_cpu_memory_usage for event in recorded.events())


def log_softmax_bytes(batch: int) -> int:
    """What the cross-entropy keeps of the logits."""
    return batch * SHAPES["fast_tokens"] * TINY.language.vocab_size * 4


@pytest.mark.parametrize("compute_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3])
def test_activations_are_what_a_forward_pass_holds(model, compute_dtype, batch) -> None:
    set_checkpointing(model, False)
    held = held_after_forward(model, batch, compute_dtype)
    plan = plan_tiny(**RUN | {"batch_per_device": batch, "compute_dtype": compute_dtype})
    assert plan.activations + plan.weight_copies + log_softmax_bytes(batch) == pytest.approx(held, rel=0.03)


def test_checkpointing_keeps_inputs_and_one_layer(model) -> None:
    batch = 3
    set_checkpointing(model, True)
    inputs = held_after_forward(model, batch, torch.float32)
    model.paligemma_with_expert.pairs[1].activation_checkpointing = False
    with_one_layer = held_after_forward(model, batch, torch.float32)
    set_checkpointing(model, False)
    plan = plan_tiny(**RUN | {"batch_per_device": batch, "activation_checkpointing": True})
    assert with_one_layer > 1.5 * inputs
    assert plan.activations + log_softmax_bytes(batch) == pytest.approx(with_one_layer, rel=0.1)


def test_a_frozen_backbone_keeps_less(model) -> None:
    set_checkpointing(model, False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_backbone(name))
    try:
        held = held_after_forward(model, 2, torch.float32)
    finally:
        model.requires_grad_(True)
    plan = plan_tiny(**RUN | {"trainable": lambda name: not is_backbone(name)})
    assert plan.activations == pytest.approx(held, rel=0.1)
    assert plan.activations < 0.2 * plan_tiny(**RUN).activations
    expert = sum(parameter.numel() for parameter in model.expert_parameters().values())
    assert (plan.gradients, plan.moments, plan.averages) == (4 * expert, 8 * expert, 4 * expert)
    assert plan.parameters == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_the_full_model_is_counted_to_the_byte() -> None:
    plan = plan_memory(KIConfig.from_preset("pi05_droid_ki"), **RUN | {"batch_per_device": 1})
    parameters = 3_353_384_696
    assert plan.parameters == plan.gradients == plan.averages == 4 * parameters
    assert plan.moments == 8 * parameters
    assert plan.logits == 30 * 257_152 * 12
    assert plan.total > 5 * 4 * parameters


def test_sharding_divides_what_is_kept() -> None:
    alone = plan_tiny(**RUN | {"compute_dtype": torch.bfloat16})
    ddp = plan_tiny(**RUN | {"compute_dtype": torch.bfloat16, "strategy": "ddp", "world_size": 8})
    fsdp = plan_tiny(**RUN | {"compute_dtype": torch.bfloat16, "strategy": "fsdp", "world_size": 8})
    assert ddp.total == alone.total
    for part in ("parameters", "gradients", "moments", "averages"):
        # Each parameter is padded to a multiple of the GPUs along its first dimension.
        assert getattr(alone, part) / 8 <= getattr(fsdp, part) <= getattr(alone, part) / 8 * 1.05
    assert (fsdp.activations, fsdp.logits) == (alone.activations, alone.logits)


def test_what_one_gpu_gathers_under_fsdp_is_on_top() -> None:
    """Gathered weights are the model's at most, and a sharded run has them beside its shards."""
    fsdp = plan_tiny(**RUN | {"strategy": "fsdp", "world_size": 8})
    assert 0 < fsdp.weight_copies < plan_tiny(**RUN).parameters
    assert plan_tiny(**RUN).weight_copies == 0


def test_autocast_without_its_cache_copies_one_layer_at_a_time() -> None:
    checkpointed = {"activation_checkpointing": True, "compute_dtype": torch.bfloat16}
    cached = plan_tiny(**RUN | checkpointed)
    uncached = plan_tiny(**RUN | checkpointed, autocast_cache=False)
    assert uncached.weight_copies < 0.5 * cached.weight_copies
    kept = plan_tiny(**RUN | {"compute_dtype": torch.bfloat16}, autocast_cache=False)
    assert kept.weight_copies == cached.weight_copies


def test_adapters_add_their_own_state_alone() -> None:
    plan = plan_tiny(**RUN | {"trainable": lambda _: False, "lora_parameters": 1000})
    assert (plan.gradients, plan.moments, plan.averages) == (4000, 8000, 4000)
    assert plan.parameters == plan_tiny(**RUN).parameters + 4000
    assert plan.activations == plan_tiny(**RUN).activations


def test_without_an_average_there_is_none() -> None:
    assert plan_tiny(**RUN | {"ema": False}).averages == 0


@pytest.mark.parametrize("checkpointing", [False, True])
def test_largest_batch_fits_and_one_more_does_not(checkpointing) -> None:
    run = {name: value for name, value in RUN.items() if name != "batch_per_device"}

    def plan(batch: int):
        return plan_tiny(batch_per_device=batch, **run | {"activation_checkpointing": checkpointing})

    budget = plan(7).total
    assert largest_batch(budget, plan) == 7
    assert largest_batch(budget - 1, plan) == 6
    assert largest_batch(plan(1).total, plan) == 1
    assert largest_batch(plan(1).total - 1, plan) == 0


def test_table_has_each_plan_and_its_total() -> None:
    plans = [plan_tiny(**RUN), plan_tiny(**RUN | {"strategy": "fsdp", "world_size": 4})]
    console = Console(width=120)
    with console.capture() as text:
        console.print(table(plans))
    assert "single, 1 GPU, batch 2" in text.get()
    assert "fsdp, 4 GPUs, batch 2" in text.get()
    total = next(line for line in text.get().splitlines() if "total" in line)
    assert [f"{plan.total / 1e9:.2f}" in total for plan in plans] == [True, True]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_per_device", 0),
        ("world_size", 2),
        ("fast_tokens", -1),
        ("views", True),
        ("strategy", "tensor"),
        ("lora_parameters", -1),
    ],
)
def test_what_no_run_has_is_refused_by_name(name, value) -> None:
    with pytest.raises(ValueError, match=f"^{name} is {value!r}"):
        plan_tiny(**RUN | {name: value})


def test_a_run_that_trains_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="trainable leaves no parameter"):
        plan_tiny(**RUN | {"trainable": lambda _: False})
