"""The losses of knowledge insulation, as sums over samples that add up over micro-batches and processes.

Each sample counts the same: its loss is the mean over its own valid values or tokens. A batch's loss is the sum over
its samples divided by their number, so it does not depend on how a batch is split, as long as all parts divide by the
number in the whole (`LossCounts`).

Shapes: B batch, S draws of noise, H action horizon, D action dimension, F tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ki_ros.model.observation import ObservationError, expect_tensor


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
        mask: (B, H) bool, true at steps of the episode. A sample without any contributes nothing.
        action_dims: leading values of an action that mean something; the rest is padding and carries no loss.

    Returns:
        float32 scalar.
    """
    error = (velocity[..., :action_dims] - target[..., :action_dims]).square().mean(-1).mean(1)
    steps = mask.sum(1)
    # where, not a product: what the padding holds may be anything, and 0 * inf is not 0.
    per_sample = torch.where(mask, error, 0.0).sum(1) / steps.clamp(min=1)
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
    chosen = targets[mask]
    weight = (mask / mask.sum(1, keepdim=True).clamp(min=1))[mask]
    cross_entropy = F.cross_entropy(logits, chosen, reduction="none")
    right = (logits.argmax(-1) == chosen).float()
    return TokenLoss((cross_entropy * weight).sum(), (right * weight).sum())


def divide(total: Tensor, count: float) -> Tensor:
    """total / count, and zero where there was nothing to count."""
    return total / max(count, 1.0)
