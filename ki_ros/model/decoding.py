"""FAST tokens from the backbone, greedily: a diagnostic of whether the backbone says what the expert does."""

from __future__ import annotations

from collections.abc import Sequence

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
    allowed: Sequence[int] | None,
    eos_id: int,
    max_tokens: int,
) -> list[list[int]]:
    """The tokens that the backbone finds most likely, one after the other, up to EOS.

    Args:
        model: in evaluation mode.
        observation: its FAST tokens, if any, are not read.
        allowed: ids to choose from beside EOS, such as those of a FAST vocabulary; None for all.
        eos_id: the end of a sequence.
        max_tokens: most tokens of a sequence; one that has no end by then is cut there, and has no EOS to show.

    Returns:
        B lists of ids, EOS included where it was said. `FASTVocabulary.from_backbone` and `FASTTokenizer.decode` make
        actions of them, or say at which position they are malformed.

    Raises:
        ObservationError: the observation does not fit the model, or a row has neither view nor prompt.
        ValueError: max_tokens below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; give a positive integer")
    prefix = model.embed_prefix(observation, views_required=False)
    transformer = model.paligemma_with_expert
    hidden, cache = transformer.encode_rows(prefix.embeddings, prefix.mask, prediction_rows(prefix.mask, 1))
    barred = _barred(model, allowed, eos_id)
    sequences: list[list[int]] = [[] for _ in range(len(prefix.mask))]
    open_rows = set(range(len(sequences)))
    while True:
        logits = model.vlm_logits(hidden[:, 0])
        if barred is not None:
            logits = logits.masked_fill(barred, float("-inf"))
        tokens = logits.argmax(-1)
        for row in sorted(open_rows):
            token = int(tokens[row])
            sequences[row].append(token)
            if token == eos_id or len(sequences[row]) == max_tokens:
                open_rows.discard(row)
        if not open_rows:
            return sequences
        embedded = transformer.backbone.language_model.embed(tokens[:, None]).to(prefix.embeddings.dtype)
        hidden, cache = transformer.continue_rows(cache, embedded)


def _barred(model: KIModel, allowed: Sequence[int] | None, eos_id: int) -> Tensor | None:
    """(vocabulary,) bool, true at ids that must not be chosen."""
    if allowed is None:
        return None
    barred = torch.ones(model.config.language.vocab_size, dtype=torch.bool, device=model.device)
    barred[torch.as_tensor([*allowed, eos_id], device=model.device)] = False
    return barred
