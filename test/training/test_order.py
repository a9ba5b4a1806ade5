"""The order of samples: every one once an epoch, whoever computes it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ki_ros.training.order import generator_at, micro_batch, sample_at


@given(length=st.integers(1, 60), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_an_epoch_has_every_sample_once(length: int, seed: int, epoch: int) -> None:
    found = [sample_at(epoch * length + place, length, seed) for place in range(length)]
    assert sorted(found) == list(range(length))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {
        (seed, epoch): tuple(sample_at(epoch * 50 + place, 50, seed) for place in range(50))
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(set(orders.values())) == len(orders)


@given(
    step=st.integers(0, 20),
    world_size=st.sampled_from([1, 2, 3, 4, 6]),
    accumulation=st.sampled_from([1, 2, 4]),
)
def test_a_step_has_the_same_positions_however_it_is_split(step: int, world_size: int, accumulation: int) -> None:
    batch = 48
    if batch % (world_size * accumulation):
        return
    size = batch // (world_size * accumulation)
    positions = [
        position
        for micro in range(accumulation)
        for rank in range(world_size)
        for position in micro_batch(
            step, micro, rank, micro_size=size, world_size=world_size, accumulation=accumulation
        )
    ]
    assert sorted(positions) == list(range(step * batch, (step + 1) * batch))


def test_random_numbers_belong_to_the_position() -> None:
    draws = [tuple(generator_at(position, seed).random(3)) for position in range(20) for seed in range(3)]
    assert len(set(draws)) == len(draws)
    assert draws == [tuple(generator_at(position, seed).random(3)) for position in range(20) for seed in range(3)]
    assert all(one != other for one, other in pairwise(draws))


@pytest.mark.parametrize("length", [1, 7])
def test_a_position_is_the_same_sample_at_any_time(length: int) -> None:
    first = [sample_at(position, length, 4) for position in range(5 * length)]
    assert [sample_at(position, length, 4) for position in reversed(range(5 * length))] == first[::-1]
