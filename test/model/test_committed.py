"""Chunks that go on from given actions: what is learnt of them in training, and what is kept of them in sampling."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small import make_model

from ki_ros.model.config import ConfigError, KIConfig
from ki_ros.model.model import KIModel

BATCH, DRAWS, HORIZON, VALUES = 2, 3, 5, 8


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model(small_config: KIConfig) -> KIModel:
    return make_model(replace(small_config, committed_rows=3))


@pytest.fixture
def batch(make_observation):
    observation = make_observation()
    tokens = torch.randint(1, 60, (BATCH, 4), generator=torch.Generator().manual_seed(3))
    observation = replace(
        observation, fast_action_tokens=tokens, fast_action_mask=torch.ones(BATCH, 4, dtype=torch.bool)
    )
    return observation, normal(4, BATCH, HORIZON, VALUES), normal(5, BATCH, DRAWS, HORIZON, VALUES)


TIME = torch.tensor([[0.2, 0.7, 0.9], [0.4, 1.0, 0.1]])


def per_action(committed: list[list[int]]) -> torch.Tensor:
    """Times (B, S, H): zero at the first rows of each draw, else `TIME`."""
    return TIME[..., None] * (torch.arange(HORIZON) >= torch.tensor(committed)[..., None])


def test_one_time_for_each_action_is_one_for_all_where_they_are_equal(model: KIModel, batch) -> None:
    observation, actions, noise = batch
    one = model.compute_loss(observation, actions, noise=noise, time=TIME, flow_samples=DRAWS)
    each = model.compute_loss(
        observation, actions, noise=noise, time=per_action([[0, 0, 0], [0, 0, 0]]), flow_samples=DRAWS
    )
    torch.testing.assert_close(each.flow_loss, one.flow_loss, rtol=1e-5, atol=0)
    assert torch.equal(each.fast_loss, one.fast_loss)


def test_a_committed_action_is_seen_as_it_is_and_not_learnt(model: KIModel, batch) -> None:
    observation, actions, noise = batch
    time = per_action([[2, 0, 3], [1, 2, 0]])

    def flow(actions: torch.Tensor, noise: torch.Tensor) -> float:
        return model.compute_loss(observation, actions, noise=noise, time=time, flow_samples=DRAWS).flow_loss.item()

    before = flow(actions, noise)
    # Its noise plays no part.
    other = noise.clone()
    other[0, 2, :3] += 1.0
    assert flow(actions, other) == before
    # Where it is not committed, it does.
    other = noise.clone()
    other[0, 1, 0] += 1.0
    assert flow(actions, other) != before
    # The action itself does: the others go on from it.
    moved = actions.clone()
    moved[0, 0] += 1.0
    assert flow(moved, noise) != before


def test_the_loss_is_the_mean_over_what_is_learnt(model: KIModel, batch) -> None:
    """One draw and one row at a time, from the velocity that inference has at the same times."""
    observation, actions, noise = batch
    committed = [[2, 0, 3], [1, 2, 0]]
    time = per_action(committed)
    total = 0.0
    with torch.no_grad():
        cache = model.encode_prefix(observation)
        for draw in range(DRAWS):
            t = time[:, draw]
            x = t[..., None] * noise[:, draw] + (1 - t[..., None]) * actions
            error = (model.velocity_from_cache(cache, x, t) - (noise[:, draw] - actions)).square().mean(-1)
            for row in range(BATCH):
                learnt = sum(HORIZON - c for c in committed[row])
                total += float(error[row, committed[row][draw] :].sum()) / learnt / BATCH
        loss = model.compute_loss(observation, actions, noise=noise, time=time, flow_samples=DRAWS).flow_loss
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_what_is_committed_is_kept_to_the_bit_and_decides_the_rest(model: KIModel, make_observation) -> None:
    observation, noise = make_observation(), normal(6, BATCH, HORIZON, VALUES)
    for rows in range(4):
        one, other = normal(7, BATCH, rows, VALUES), normal(8, BATCH, rows, VALUES)
        chunk = model.sample_actions(observation, noise=noise, committed=one)
        assert torch.equal(chunk[:, :rows], one)
        assert torch.equal(model.sample_actions(observation, noise=noise, committed=one), chunk)
        if rows:
            assert not torch.allclose(
                model.sample_actions(observation, noise=noise, committed=other)[:, rows:], chunk[:, rows:]
            )
    free = model.sample_actions(observation, noise=noise)
    nothing = model.sample_actions(observation, noise=noise, committed=torch.zeros(BATCH, 0, VALUES))
    torch.testing.assert_close(nothing, free, atol=1e-5, rtol=0)


def test_no_more_than_it_was_trained_with(model: KIModel, small_model: KIModel, make_observation) -> None:
    with pytest.raises(ValueError, match=r"committed has 4 rows.*up to 3 \(committed_rows\)"):
        model.sample_actions(make_observation(), committed=torch.zeros(BATCH, 4, VALUES))
    with pytest.raises(ValueError, match=r"committed has 1 rows.*up to 0"):
        small_model.sample_actions(make_observation(), committed=torch.zeros(BATCH, 1, VALUES))
    with pytest.raises(ValueError, match=r"committed has shape \(1, 2, 8\)"):
        model.sample_actions(make_observation(), committed=torch.zeros(1, 2, VALUES))


@pytest.mark.parametrize("rows", [-1, 5])
def test_rows_that_leave_nothing_to_learn_are_refused(small_config: KIConfig, rows: int) -> None:
    with pytest.raises(ConfigError, match=f"committed_rows is {rows}"):
        replace(small_config, committed_rows=rows)
