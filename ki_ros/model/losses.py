"""The losses of knowledge insulation, as sums over samples that add up over micro-batches and processes.

Each sample counts the same: its loss is the mean over its own valid values or tokens. A batch's loss is the sum over
its samples divided by their number, so it does not depend on how a batch is split, as long as all parts divide by the
number in the whole (`LossCounts`).

Shapes: B batch, S draws of noise, H action horizon, D action dimension, F tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ki_ros.model.observation import ObservationError, expect_tensor

LOGIT_ROWS = 1024
"""Most rows of logits that are held at once."""


class KILoss(NamedTuple):
    """Losses of a batch, float32 scalars.

    Attributes:
        loss: `flow_loss + knowledge_insulation_lambda * (fast_loss + vision_language_loss)`; the one to minimise.
        flow_loss: mean squared error of the expert's velocity.
        fast_loss: cross-entropy of the backbone's next FAST token [nat].
        fast_accuracy: share of FAST tokens, the end of the sequence included, that have the largest logit.
        vision_language_loss: cross-entropy of the answers' next token [nat]; None without such data.
    """

    loss: Tensor
    flow_loss: Tensor
    fast_loss: Tensor
    fast_accuracy: Tensor
    vision_language_loss: Tensor | None = None


class LossCounts(NamedTuple):
    """Numbers of samples that carry each loss: what the sums over samples are divided by."""

    flow: float
    fast: float
    vision_language: float = 0.0


@dataclass(frozen=True)
class VisionLanguageBatch:
    """Plain vision-language data for co-training: image, question, answer. Its rows are no rows of the robot's batch.

    Attributes:
        images, image_masks: as in `Observation`; both may be empty, for text alone.
        question, question_mask: (B, T) int64 and bool, padded on the right. Seen bidirectionally, without loss.
        answer, answer_mask: (B, A) int64 and bool, padded on the right; ends with EOS where an end is to be learned.
    """

    images: dict[str, Tensor]
    image_masks: dict[str, Tensor]
    question: Tensor
    question_mask: Tensor
    answer: Tensor
    answer_mask: Tensor

    def validate(self) -> None:
        """Checks shapes and dtypes of what `Observation` does not. Raises ObservationError."""
        expect_tensor("answer", self.answer, (len(self.question), None), torch.int64)
        expect_tensor("answer_mask", self.answer_mask, tuple(self.answer.shape), torch.bool)


class TokenLoss(NamedTuple):
    """Sums over samples, float32 scalars: of each sample's mean cross-entropy, and of its share of right tokens."""

    cross_entropy: Tensor
    accuracy: Tensor


def velocity_loss(velocity: Tensor, target: Tensor, mask: Tensor, action_dims: int) -> Tensor:
    """Sum over samples of the mean squared error of the velocity.

    Args:
        velocity, target: (B, S, H, D) float32.
        mask: (B, H) bool, true at steps of the episode, or (B, S, H), at those of them that a draw is to learn. A
            sample without any contributes nothing.
        action_dims: leading values of an action that mean something; the rest is padding and carries no loss.

    Returns:
        float32 scalar.
    """
    error = (velocity[..., :action_dims] - target[..., :action_dims]).square().mean(-1)
    if mask.dim() == 2:
        error = error.mean(1)
    # where, not a product: what the padding holds may be anything, and 0 * inf is not 0.
    per_sample = torch.where(mask, error, 0.0).flatten(1).sum(1) / mask.flatten(1).sum(1).clamp(min=1)
    return per_sample.sum()


def prediction_rows(prefix_mask: Tensor, length: int) -> Tensor:
    """The backbone tokens (B, F) that predict the F tokens after a prefix: its last valid one, then the first F - 1.

    Raises:
        ObservationError: a row whose prefix is empty: nothing predicts its first token.
    """
    batch, prefix = prefix_mask.shape
    index = torch.arange(prefix, device=prefix_mask.device)
    last = F.pad(torch.where(prefix_mask, index, -1), (1, 0), value=-1).max(dim=1, keepdim=True).values
    if bool((last < 0).any()):
        row = int((last < 0).nonzero()[0, 0])
        raise ObservationError(f"row {row} has neither a view nor a prompt; give it at least one of them")
    following = torch.arange(prefix, prefix + length - 1, device=prefix_mask.device)
    return torch.cat((last, following.expand(batch, -1)), dim=1)


def token_loss(logits: Tensor, targets: Tensor, mask: Tensor) -> TokenLoss:
    """Cross-entropy and accuracy of next-token prediction.

    Args:
        logits: (N, vocabulary) float32, one row for each true value of the mask, in row-major order.
        targets, mask: (B, F) int64 and bool. A sample without tokens contributes nothing.
    """
    return TokenLoss(*_weighted(logits, targets[mask], _weights(mask)))


def token_loss_by_head(
    head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, mask: Tensor, *, rows: int = LOGIT_ROWS
) -> TokenLoss:
    """`token_loss` of `head(hidden)`, without ever holding more than `rows` rows of logits.

    A large vocabulary makes logits the largest tensors of a step: 64 samples of 128 tokens have 29 GB of them. Of more
    than `rows` rows, those of each part are computed again in the backward pass.

    Args:
        head: from (n, W) to logits (n, vocabulary) float32.
        hidden: (N, W), one row for each true value of the mask.
        targets, mask: (B, F).
        rows: of one part.
    """
    chosen, weight = targets[mask], _weights(mask)
    if len(hidden) <= rows:
        return TokenLoss(*_weighted(head(hidden), chosen, weight))

    def part(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        return _weighted(head(arguments[0]), *arguments[1:])

    parts = [
        checkpoint(part, *arguments, use_reentrant=False)
        for arguments in zip(hidden.split(rows), chosen.split(rows), weight.split(rows), strict=True)
    ]
    return TokenLoss(*(torch.stack(values).sum() for values in zip(*parts, strict=True)))


def _weights(mask: Tensor) -> Tensor:
    """(N,) float32: each token's share of its sample."""
    return (mask / mask.sum(1, keepdim=True).clamp(min=1))[mask]


def _weighted(logits: Tensor, chosen: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    cross_entropy = F.cross_entropy(logits, chosen, reduction="none")
    right = (logits.argmax(-1) == chosen).float()
    return (cross_entropy * weight).sum(), (right * weight).sum()


def divide(total: Tensor, count: float) -> Tensor:
    """total / count, and zero where there was nothing to count."""
    return total / max(count, 1.0)
