"""FAST tokens from the backbone, greedily: a diagnostic of whether the backbone says what the expert does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ki_ros.model.losses import prediction_rows
from ki_ros.model.model import KIModel
from ki_ros.model.observation import Observation


@torch.no_grad()
def decode_fast_actions(
    model: KIModel,
    observation: Observation,
    *,
    allowed: Callable[[Sequence[int]], Tensor] | None,
    eos_id: int,
    max_tokens: int,
) -> list[list[int]]:
    """The tokens that the backbone finds most likely, one after the other, up to EOS.

    Args:
        model: in evaluation mode.
        observation: its FAST tokens, if any, are not read.
        allowed: the ids, int64, that one of them is chosen from to follow a sequence, EOS among them where it may end;
            None for all of them, always. A sequence that nothing may follow is cut there.
        eos_id: the end of a sequence.
        max_tokens: most tokens of a sequence; one that has no end by then is cut there, and has no EOS to show.

    Returns:
        B lists of ids, EOS included where it was said.

    Raises:
        ObservationError: the observation does not fit the model, or a row has neither view nor prompt.
        ValueError: max_tokens below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; give a positive integer")
    prefix = model.embed_prefix(observation, views_required=False)
    transformer = model.paligemma_with_expert
    hidden, cache = transformer.encode_rows(prefix.embeddings, prefix.mask, prediction_rows(prefix.mask, 1))
    sequences: list[list[int]] = [[] for _ in range(len(prefix.mask))]
    open_rows = set(range(len(sequences)))
    following = torch.full((len(sequences),), eos_id, device=model.device)
    while True:
        logits = model.vlm_logits(hidden[:, 0])
        for row in sorted(open_rows):
            choice = _likeliest(logits[row], allowed(sequences[row]) if allowed is not None else None)
            if choice is not None:
                sequences[row].append(choice)
                following[row] = choice
            if choice in (None, eos_id) or len(sequences[row]) == max_tokens:
                open_rows.discard(row)
        if not open_rows:
            return sequences
        embedded = transformer.backbone.language_model.embed(following[:, None]).to(prefix.embeddings.dtype)
        hidden, cache = transformer.continue_rows(cache, embedded)


def _likeliest(logits: Tensor, ids: Tensor | None) -> int | None:
    """Of (vocabulary,) logits, the id with the greatest one among the given; None where there are none."""
    if ids is None:
        return int(logits.argmax())
    return int(ids[logits[ids.to(logits.device)].argmax()]) if len(ids) else None
