from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small import make_model

from ki_ros.model.config import KIConfig
from ki_ros.model.flow import flow_target, integrate, interpolate, sample_times, time_embedding
from ki_ros.model.model import KIModel
from ki_ros.rig import POLICY_SLOTS

NOISE = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(5))


def test_time_embedding_is_exact_to_float32() -> None:
    time = np.float32([0.001, 0.3, 0.7, 1.0])
    got = time_embedding(torch.from_numpy(time), 6).numpy()
    for t, row in zip(time, got, strict=True):
        angles = [2 * math.pi * float(t) / period for period in (0.004, math.sqrt(0.004 * 4.0), 4.0)]
        np.testing.assert_allclose(row, [*map(math.sin, angles), *map(math.cos, angles)], atol=1e-7)


@pytest.mark.parametrize("steps", [1, 3, 10, 100])
def test_times_are_a_float32_running_sum(steps: int) -> None:
    expected, time = [], np.float32(1)
    for _ in range(steps):
        expected.append(float(time))
        time = np.float32(time + np.float32(-1 / steps))
    assert sample_times(steps) == expected


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_number_of_steps_is_checked(steps, small_model, make_observation) -> None:
    with pytest.raises(ValueError, match="num_steps"):
        small_model.sample_actions(make_observation(), noise=NOISE, num_steps=steps)


def test_integration_of_a_constant_velocity_is_exact() -> None:
    noise, actions = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    velocity = flow_target(actions, noise)
    torch.testing.assert_close(integrate(lambda _x, _time: velocity, noise, 10), actions, atol=1e-5, rtol=0)
    time = torch.tensor([0.0, 1.0])
    ends = interpolate(actions, noise, time)
    assert torch.equal(ends[0], actions[0])
    assert torch.equal(ends[1], noise[1])


def test_noise_comes_from_the_generator(small_model, make_observation) -> None:
    def sample(seed: int) -> torch.Tensor:
        return small_model.sample_actions(make_observation(), generator=torch.Generator().manual_seed(seed))

    noise = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(sample(3), sample(3))
    assert not torch.equal(sample(3), sample(4))
    assert torch.equal(sample(3), small_model.sample_actions(make_observation(), noise=noise))
    assert sample(3).shape == (2, 5, 8)
    assert not sample(3).requires_grad


def test_wrong_shapes_are_named(small_model, make_observation) -> None:
    with pytest.raises(ValueError, match=r"noise has shape \(2, 5, 7\).*\(2, 5, 8\)"):
        small_model.sample_actions(make_observation(), noise=NOISE[:, :, :7])
    with pytest.raises(ValueError, match=r"time has shape \(1,\)"):
        small_model.velocity(make_observation(), NOISE, torch.ones(1))


def test_prefix_is_encoded_once(small_model, make_observation) -> None:
    """Ten steps run each expert layer ten times and each backbone layer once, the last one without its MLP."""
    calls: dict[str, int] = {}
    modules = small_model.paligemma_with_expert
    watched = {
        "expert": modules.expert.layers[1],
        "backbone": modules.backbone.language_model.layers[1],
        "first mlp": modules.backbone.language_model.layers[0].mlp,
        "last mlp": modules.backbone.language_model.layers[1].mlp,
        "vision": modules.backbone.vision_tower,
    }
    hooks = []
    for name, module in watched.items():
        calls[name] = 0
        hook = module.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
        hooks.append(hook)
    small_model.sample_actions(make_observation(), noise=NOISE)
    for hook in hooks:
        hook.remove()
    assert calls == {"expert": 10, "backbone": 1, "first mlp": 1, "last mlp": 0, "vision": 1}


def test_bfloat16_stays_close(small_config, small_model, make_observation) -> None:
    model = make_model(small_config).cast_(torch.bfloat16)
    assert model.action_out_proj.weight.dtype == torch.float32
    assert model.paligemma_with_expert.expert.norm.dense.weight.dtype == torch.float32
    assert model.paligemma_with_expert.expert.dtype == torch.bfloat16
    expected = small_model.sample_actions(make_observation(), noise=NOISE)
    for dtype in (torch.float32, torch.bfloat16):
        got = model.sample_actions(make_observation().to(dtype=dtype), noise=NOISE)
        assert got.dtype == torch.float32
        assert (got - expected).abs().max() < 0.15
    cached = model.velocity(make_observation(), NOISE, torch.tensor([0.5, 0.5]), cached=True)
    joint = model.velocity(make_observation(), NOISE, torch.tensor([0.5, 0.5]), cached=False)
    assert (cached - joint).abs().max() < 0.05


@pytest.mark.parametrize("insulated", [True, False])
def test_insulation_stops_the_gradient(small_config: KIConfig, make_observation, insulated: bool) -> None:
    values = small_config.to_dict() | {"knowledge_insulation": insulated}
    model: KIModel = make_model(KIConfig.from_dict(values))
    model.joint(make_observation(), NOISE, torch.tensor([0.2, 0.8])).velocity.square().sum().backward()

    def learns(module: torch.nn.Module) -> bool:
        return any(p.grad is not None and p.grad.abs().max() > 0 for p in module.parameters())

    modules = model.paligemma_with_expert
    assert learns(modules.expert.layers[0].self_attn)
    assert learns(modules.backbone.vision_tower) is not insulated
    assert learns(modules.backbone.language_model.embed_tokens) is not insulated
    assert learns(modules.backbone.language_model.layers[-1].self_attn) is not insulated


def test_insulation_does_not_change_the_velocity(small_config: KIConfig, small_model, make_observation) -> None:
    values = small_config.to_dict() | {"knowledge_insulation": False}
    plain, time = make_model(KIConfig.from_dict(values)), torch.tensor([0.2, 0.8])
    expected = small_model.velocity(make_observation(), NOISE, time, cached=False)
    assert torch.equal(plain.velocity(make_observation(), NOISE, time, cached=False), expected)


def test_slots_enter_in_their_order(small_model, make_observation) -> None:
    masks = {slot: [True, True] for slot in POLICY_SLOTS}
    observation, reverse = make_observation(masks), make_observation(dict(reversed(masks.items())))
    assert torch.equal(small_model.embed_prefix(observation).embeddings, small_model.embed_prefix(reverse).embeddings)
