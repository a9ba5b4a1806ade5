"""What a row does not have must not matter, to the bit; where tokens are packed differently, to float32 noise."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from ki_ros.model.layers import never_empty
from ki_ros.model.observation import Observation, ObservationError
from ki_ros.rig import POLICY_SLOTS

BASE, LEFT, RIGHT = POLICY_SLOTS
NOISE = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(5))
TIME = torch.tensor([0.3, 0.9])


def row(observation: Observation, index: int) -> Observation:
    pick = slice(index, index + 1)
    return Observation(
        images={slot: image[pick] for slot, image in observation.images.items()},
        image_masks={slot: mask[pick] for slot, mask in observation.image_masks.items()},
        state=observation.state[pick],
        tokenized_prompt=observation.tokenized_prompt[pick],
        tokenized_prompt_mask=observation.tokenized_prompt_mask[pick],
    )


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("fill", [0.5, float("nan")])
def test_content_of_a_masked_view_is_not_read(small_model, make_observation, cached, fill) -> None:
    masks = {BASE: [True, True], LEFT: [True, False], RIGHT: [False, False]}
    observation = make_observation(masks)
    other = make_observation(masks)
    other.images[RIGHT].fill_(fill)
    other.images[LEFT][1].fill_(fill)
    expected = small_model.velocity(observation, NOISE, TIME, cached=cached)
    assert torch.equal(small_model.velocity(other, NOISE, TIME, cached=cached), expected)


def test_a_view_masked_for_all_is_the_same_as_none(small_model, make_observation) -> None:
    observation = make_observation({BASE: [True, True], LEFT: [True, True], RIGHT: [False, False]})
    without = dataclasses.replace(
        observation,
        images={slot: observation.images[slot] for slot in (BASE, LEFT)},
        image_masks={slot: observation.image_masks[slot] for slot in (BASE, LEFT)},
    )
    expected = small_model.sample_actions(observation, noise=NOISE, num_steps=3)
    assert torch.equal(small_model.sample_actions(without, noise=NOISE, num_steps=3), expected)
    assert small_model.embed_prefix(observation).mask.shape[1] == 2 * 4 + 6


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(
    "masks",
    [
        {BASE: [False, True], LEFT: [True, True], RIGHT: [False, False]},
        {BASE: [False, True], LEFT: [True, False], RIGHT: [True, True]},
        {BASE: [True, True], LEFT: [False, True]},
    ],
)
def test_a_row_of_a_batch_is_the_row_alone(small_model, make_observation, masks, cached) -> None:
    """Alone, a row has no masked tokens at all: this catches wrong positions, masks and scattered features."""
    observation = make_observation(masks)
    together = small_model.velocity(observation, NOISE, TIME, cached=cached)
    for index in range(2):
        pick = slice(index, index + 1)
        alone = small_model.velocity(row(observation, index), NOISE[pick], TIME[pick])
        torch.testing.assert_close(together[pick], alone, atol=1e-5, rtol=0)


def test_every_view_and_word_matters(small_model, make_observation) -> None:
    """The weights of these tests react to all that is visible; otherwise the others would show nothing."""
    observation = make_observation()
    expected = small_model.velocity(observation, NOISE, TIME)
    for slot in (BASE, LEFT):
        other = make_observation()
        other.images[slot].neg_()
        assert (small_model.velocity(other, NOISE, TIME) - expected).abs().max() > 1e-3
    other = make_observation()
    other.tokenized_prompt[:, 3] = 7
    assert (small_model.velocity(other, NOISE, TIME) - expected).abs().max() > 1e-3


def test_content_of_prompt_padding_is_not_read(small_model, make_observation) -> None:
    observation, other = make_observation(), make_observation()
    other.tokenized_prompt[~other.tokenized_prompt_mask] = 0
    expected = small_model.sample_actions(observation, noise=NOISE)
    assert torch.equal(small_model.sample_actions(other, noise=NOISE), expected)


def test_length_of_prompt_padding_does_not_matter(small_model, make_observation) -> None:
    observation = make_observation()
    shorter = dataclasses.replace(
        observation,
        tokenized_prompt=observation.tokenized_prompt[:, :7],
        tokenized_prompt_mask=observation.tokenized_prompt_mask[:, :7],
    )
    expected = small_model.velocity(observation, NOISE, TIME)
    assert torch.equal(small_model.velocity(shorter, NOISE, TIME), expected)


@pytest.mark.parametrize("prompt", [(0, 0), (0, 5)])
def test_an_empty_prompt_is_no_prompt(small_model, make_observation, prompt) -> None:
    observation = make_observation(prompt=prompt)
    cached = small_model.velocity(observation, NOISE, TIME, cached=True)
    assert cached.isfinite().all()
    torch.testing.assert_close(small_model.velocity(observation, NOISE, TIME, cached=False), cached, atol=1e-5, rtol=0)


def test_a_row_without_views_is_refused(small_model, make_observation) -> None:
    observation = make_observation({BASE: [True, False], LEFT: [True, False], RIGHT: [False, False]})
    with pytest.raises(ObservationError, match="row 1 has none of base_0_rgb"):
        small_model.sample_actions(observation, noise=NOISE)


def test_only_an_empty_row_of_a_mask_is_opened() -> None:
    """Whether softmax over no keys is a number depends on torch's version and device, so there must be none."""
    mask = torch.tensor([[[True, False], [False, False]]])
    assert never_empty(mask).tolist() == [[[True, False], [True, True]]]
