"""The tokens that a model begins with: views and prompt. B batch, T prefix tokens, F tokens after them, W width."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ki_ros.model.backbone import Backbone
from ki_ros.model.config import KIConfig
from ki_ros.model.observation import Observation, ObservationError
from ki_ros.rig import POLICY_SLOTS


class Prefix(NamedTuple):
    """Embedded views and prompt: embeddings (B, T, W), mask (B, T) bool of valid positions."""

    embeddings: Tensor
    mask: Tensor


def embed_tokens(
    backbone: Backbone, config: KIConfig, observation: Observation, following: Tensor, *, views_required: bool
) -> tuple[Prefix, Tensor]:
    """Tokens of the views, in the order of `POLICY_SLOTS`, then of the prompt; and those that follow.

    What no row can see is left out: a view that is masked in the whole batch, and prompt padding past the longest
    prompt. A view that some rows lack is encoded for the others. Neither changes a result, for masked tokens are
    invisible and take no position. All views are one call of the vision tower. Prompt and following tokens are one
    look-up: the gradient of each is as large as the whole embedding.

    Args:
        backbone, config: of the model.
        observation: its FAST tokens are not read.
        following: (B, F) int64; F may be 0.
        views_required: whether a row without any view is refused.

    Returns:
        the prefix, and the following tokens, embedded (B, F, W).

    Raises:
        ObservationError: the observation does not fit the model, or a row has no view and `views_required`.
    """
    observation.validate(config)
    images, image_masks = observation.images, observation.image_masks
    tokens, token_mask = observation.tokenized_prompt, observation.tokenized_prompt_mask
    slots = [slot for slot in POLICY_SLOTS if slot in images]
    present = [image_masks[slot].tolist() for slot in slots]
    for row in range(len(tokens) if views_required else 0):
        if not any(rows[row] for rows in present):
            raise ObservationError(
                f"image_masks: row {row} has none of {', '.join(slots or POLICY_SLOTS)}; "
                "give each row at least one view"
            )
    kept = {slot: rows for slot, rows in zip(slots, present, strict=True) if any(rows)}
    embeddings, masks = [], []
    if kept:
        encoded = [images[slot] if all(rows) else images[slot][image_masks[slot]] for slot, rows in kept.items()]
        features = backbone.embed_images(torch.cat(encoded))
        for (slot, rows), feature in zip(kept.items(), features.split([len(i) for i in encoded]), strict=True):
            mask = image_masks[slot]
            if not all(rows):
                feature = feature.new_zeros(len(rows), *feature.shape[1:]).index_put((mask,), feature)
            embeddings.append(feature)
            masks.append(mask[:, None].expand(-1, feature.shape[1]))

    columns = token_mask.any(dim=0).tolist()
    used = max((index + 1 for index, column in enumerate(columns) if column), default=0)
    words = torch.cat((tokens[:, :used], following), dim=1)
    embedded = backbone.language_model.embed(words)
    if embeddings:
        embedded = embedded.to(embeddings[0].dtype)
    elif torch.is_autocast_enabled(embedded.device.type):
        # The stream has the dtype that views would give it.
        embedded = embedded.to(torch.get_autocast_dtype(embedded.device.type))
    embeddings.append(embedded[:, :used])
    masks.append(token_mask[:, :used])
    return Prefix(torch.cat(embeddings, dim=1), torch.cat(masks, dim=1)), embedded[:, used:]
