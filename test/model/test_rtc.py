"""Guidance of real-time chunking against closed forms, finite differences, and what it is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ki_ros.model.engine import random_input
from ki_ros.model.engine.modulation import modulation
from ki_ros.model.rtc import Guidance, guided, soft_mask
from ki_ros.policy import Policy
from ki_ros.share import find_share

BATCH, HORIZON, VALUES = 2, 5, 8


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_weights_are_those_of_the_paper() -> None:
    # H = 8, d = 2, s = 2: equation 5 written out.
    e = math.e
    expected = [1.0, 1.0, *(c * (e**c - 1) / (e - 1) for c in (4 / 5, 3 / 5, 2 / 5, 1 / 5)), 0.0, 0.0]
    np.testing.assert_allclose(soft_mask(8, 2, 6).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("committed", "overlap"), [(0, 0), (3, 3), (5, 5), (0, 5), (1, 4)])
def test_weights_fall_from_one_to_zero(committed: int, overlap: int) -> None:
    weights = soft_mask(HORIZON, committed, overlap)
    assert (weights[:committed] == 1).all()
    assert (weights[overlap:] == 0).all()
    assert ((weights[committed:overlap] > 0) & (weights[committed:overlap] < 1)).all()
    assert (weights.diff() <= 0).all()


@pytest.mark.parametrize(("committed", "overlap"), [(-1, 2), (3, 2), (2, 6)])
def test_rows_that_are_not_there_are_refused(committed: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"committed is {committed}, overlap {overlap}, horizon 5"):
        soft_mask(HORIZON, committed, overlap)


@pytest.mark.parametrize(("time", "weight"), [(1.0, 5.0), (0.9, 0.82 / 0.09), (0.5, 2.0), (0.1, 0.82 / 0.09)])
def test_a_linear_denoiser_has_the_gradient_in_closed_form(time: float, weight: float) -> None:
    """For v = A x + b the action pointed at is (I - t A) x - t b, so the pull is (I - t A)^T W (Y - it)."""
    size = HORIZON * VALUES
    matrix, offset = normal(1, size, size).double(), normal(2, size).double()
    x, target = normal(3, BATCH, HORIZON, VALUES).double(), normal(4, BATCH, HORIZON, VALUES).double()
    weights = soft_mask(HORIZON, 1, 4).double()

    def velocity(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return (x.flatten(1) @ matrix.T + offset).unflatten(1, (HORIZON, VALUES))

    got = guided(velocity, Guidance(target, weights))(x, torch.full((BATCH,), time, dtype=torch.float64))

    a, b = matrix.numpy(), offset.numpy()
    diagonal = np.diag(np.repeat(weights.numpy(), VALUES))
    jacobian = np.eye(size) - time * a
    for row in range(BATCH):
        flat = x[row].numpy().ravel()
        apart = target[row].numpy().ravel() - (jacobian @ flat - time * b)
        expected = a @ flat + b - min(5.0, weight) * jacobian.T @ diagonal @ apart
        np.testing.assert_allclose(got[row].numpy().ravel(), expected, rtol=1e-9, atol=1e-9)


def test_the_pull_is_the_model_s_gradient(small_model, make_observation) -> None:
    """Against central differences of half the weighted squared distance, along random directions."""
    cache = small_model.encode_prefix(make_observation())
    x, target = normal(5, BATCH, HORIZON, VALUES), normal(6, BATCH, HORIZON, VALUES)
    weights, time = soft_mask(HORIZON, 2, 4), torch.full((BATCH,), 0.5)

    def velocity(x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return small_model.velocity_from_cache(cache, x, time)

    def distance(x: torch.Tensor) -> float:
        with torch.no_grad():
            apart = target - (x - 0.5 * velocity(x, time))
        return 0.5 * float((weights[:, None] * apart.double() ** 2).sum())

    # At 0.5 the weight is 2, below its bound.
    pull = -(guided(velocity, Guidance(target, weights))(x, time) - velocity(x, time).detach()) / 2.0
    for seed in range(8):
        direction = normal(10 + seed, BATCH, HORIZON, VALUES)
        slope = (distance(x + 1e-2 * direction) - distance(x - 1e-2 * direction)) / 2e-2
        assert -float((pull * direction).sum()) == pytest.approx(slope, rel=2e-3, abs=2e-3)


def test_without_weights_nothing_changes(small_model, make_observation) -> None:
    observation, noise = make_observation(), normal(7, BATCH, HORIZON, VALUES)
    nothing = Guidance(normal(8, BATCH, HORIZON, VALUES), torch.zeros(HORIZON))
    free = small_model.sample_actions(observation, noise=noise)
    assert torch.equal(small_model.sample_actions(observation, noise=noise, guidance=nothing), free)


def test_a_chunk_comes_near_to_what_the_arm_is_committed_to(small_model, make_observation) -> None:
    """To another sample of the same observation: near on committed rows, and no nearer than before where free."""
    observation = make_observation()
    before = small_model.sample_actions(observation, noise=normal(8, BATCH, HORIZON, VALUES))
    noise = normal(9, BATCH, HORIZON, VALUES)
    free = small_model.sample_actions(observation, noise=noise)
    drawn = small_model.sample_actions(observation, noise=noise, guidance=Guidance(before, soft_mask(HORIZON, 2, 3)))
    assert not drawn.requires_grad
    apart, without = (drawn - before).abs().mean((0, 2)), (free - before).abs().mean((0, 2))
    assert (apart[:2] < 0.1 * without[:2]).all()
    assert (apart[3:] > 0.5 * without[3:]).all()


@pytest.mark.parametrize(
    ("target", "weights", "largest", "message"),
    [
        (torch.zeros(2, 5, 8), torch.zeros(4), 5.0, r"weights \(4,\)"),
        (torch.full((2, 5, 8), math.nan), torch.zeros(5), 5.0, "target has a value that is not finite"),
        (torch.zeros(2, 5, 8), torch.full((5,), 1.5), 5.0, "weights is .*1.5"),
        (torch.zeros(2, 5, 8), torch.zeros(5), math.inf, "max_weight is inf"),
    ],
)
def test_what_cannot_guide_is_refused(target, weights, largest, message) -> None:
    with pytest.raises(ValueError, match=message):
        Guidance(target, weights, largest)


def test_guidance_of_another_shape_is_refused(small_model, make_observation) -> None:
    with pytest.raises(ValueError, match=r"guidance.target has shape \(1, 5, 8\)"):
        small_model.sample_actions(make_observation(), guidance=Guidance(torch.zeros(1, 5, 8), torch.zeros(5)))


@pytest.mark.parametrize("time", [0.9, 0.5, 0.2])
def test_the_pull_on_the_policy_that_ships_is_its_gradient(time: float) -> None:
    """As the engine computes it, against central differences along random directions."""
    policy = Policy.load(checkpoint=find_share("models", "ki_tiny"), engine="fused", threads=1)
    engine, horizon = policy.engine, policy.horizon
    observation, _ = random_input(policy.config, 40, 2)
    tokens = observation.tokenized_prompt[observation.tokenized_prompt_mask]
    with torch.no_grad():
        prefix = engine.encode(torch.cat(list(observation.images.values())), tokens)
    at = modulation(policy.model, time)
    x, target, weights = normal(5, 1, horizon, VALUES), normal(6, 1, horizon, VALUES), soft_mask(horizon, 3, 10)

    def velocity(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return engine.velocity(prefix, x[0], at)[None]

    def distance(x: torch.Tensor) -> float:
        with torch.no_grad():
            apart = target - (x - time * velocity(x, None))
        return 0.5 * float((weights[:, None] * apart.double() ** 2).sum())

    strength = (time**2 + (1 - time) ** 2) / (time * (1 - time))
    guidance = Guidance(target, weights, max_weight=100.0)
    with torch.no_grad():
        free = velocity(x, None)
    pull = -(guided(velocity, guidance)(x, torch.tensor([time])) - free) / strength
    assert pull[0, 10:].abs().max() > 0, "rows influence each other"
    for seed in range(8):
        direction = normal(10 + seed, 1, horizon, VALUES)
        slope = (distance(x + 1e-2 * direction) - distance(x - 1e-2 * direction)) / 2e-2
        assert -float((pull * direction).sum()) == pytest.approx(slope, rel=2e-3, abs=2e-3)
