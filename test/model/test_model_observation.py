from __future__ import annotations

import dataclasses

import pytest
import torch

from ki_ros.model.observation import Observation, ObservationError, pixel_values


def test_fields_are_the_agreed_ones() -> None:
    assert [item.name for item in dataclasses.fields(Observation)] == [
        "images",
        "image_masks",
        "state",
        "tokenized_prompt",
        "tokenized_prompt_mask",
        "fast_action_tokens",
        "fast_action_mask",
    ]


def test_to_casts_floating_point_only(make_observation) -> None:
    moved = make_observation().to("cpu", torch.bfloat16)
    assert moved.images["base_0_rgb"].dtype == moved.state.dtype == torch.bfloat16
    assert moved.image_masks["base_0_rgb"].dtype == torch.bool
    assert moved.tokenized_prompt.dtype == torch.int64
    assert moved.fast_action_tokens is None
    assert make_observation().to("meta").images["base_0_rgb"].device.type == "meta"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: {"images": {"top": o.state}, "image_masks": {"top": o.state}}, "slot 'top'.*base_0_rgb"),
        (lambda _: {"image_masks": {}}, "give each view its mask"),
        (lambda o: {"images": {n: i[:, :, :14] for n, i in o.images.items()}}, r"base_0_rgb.*\(2, 3, 14, 28\)"),
        (lambda o: {"images": {n: (i * 9).int() for n, i in o.images.items()}}, "base_0_rgb.*int32"),
        (
            lambda o: {"images": {n: i if n == "base_0_rgb" else i.byte() for n, i in o.images.items()}},
            "torch.float32, torch.uint8; give all views the same",
        ),
        (lambda o: {"image_masks": {n: m.int() for n, m in o.image_masks.items()}}, "image_masks.*int32"),
        (lambda o: {"state": o.state[:1]}, r"state has shape \(1, 8\)"),
        (lambda _: {"state": None}, "state is NoneType"),
        (lambda o: {"tokenized_prompt": o.tokenized_prompt.int()}, "tokenized_prompt has dtype torch.int32"),
        (lambda o: {"tokenized_prompt": o.tokenized_prompt.repeat(1, 2)}, "20 tokens.*max_token_len is 10"),
        (lambda o: {"tokenized_prompt_mask": o.tokenized_prompt_mask[:, :3]}, "tokenized_prompt_mask has shape"),
        (lambda o: {"tokenized_prompt_mask": o.tokenized_prompt_mask.float()}, "tokenized_prompt_mask has dtype"),
        (lambda o: {"fast_action_tokens": o.tokenized_prompt}, "fast_action_tokens and fast_action_mask"),
    ],
)
def test_wrong_field_is_named(small_model, make_observation, change, message) -> None:
    observation = make_observation()
    wrong = dataclasses.replace(observation, **change(observation))
    with pytest.raises(ObservationError, match=message):
        small_model.sample_actions(wrong, noise=torch.zeros(2, 5, 8))


def test_bytes_are_the_pictures_that_they_say(small_model, make_observation) -> None:
    assert pixel_values(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([-1.0, -0.6, 1.0])
    given = make_observation()
    bytes_ = {name: ((image + 1) * 127.5).round().byte() for name, image in given.images.items()}
    floats = {name: torch.tensor(image.numpy() / 255.0 * 2 - 1).float() for name, image in bytes_.items()}
    noise = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    chunks = [
        small_model.sample_actions(dataclasses.replace(given, images=images), noise=noise)
        for images in (bytes_, floats)
    ]
    torch.testing.assert_close(*chunks, atol=1e-6, rtol=0)
