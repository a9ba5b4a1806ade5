#!/usr/bin/env python3
"""Trains the backbone of the ki_tiny preset to find blocks in simulated pictures: its stand-in for PaliGemma.

    scripts/make_tiny_backbone.py [DIRECTORY] [--scenes 4000] [--steps 2500] [--batch 32] [--seed 0] [--json FILE]

pi0.5 begins with a vision-language model that knows what a red block is and where it is in a picture. Robot data alone
teach that to a small model only slowly: of 32,000 demonstrated chunks ki_tiny had learnt nothing of it. So it begins
with a backbone that has learnt to answer "where is the red block" with the place in 256ths of the view from the left
and from the top (Beyer et al. 2024, arXiv 2407.07726, train PaliGemma on detection likewise). Beside the answer each
token of the picture says, through a linear layer that is dropped afterwards, how much of the block lies on it.

Scenes have the seeds from 500,000 on; demonstrations begin at 0, and evaluations at a million. The action expert in the
checkpoint is untrained.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from ki_ros.commands.progress import progress_bar
from ki_ros.commands.workers import spread
from ki_ros.files import write_json
from ki_ros.model.checkpoint import TOKENIZER_FILE, save_checkpoint
from ki_ros.model.config import KIConfig
from ki_ros.model.inputs import pixel_values
from ki_ros.model.losses import prediction_rows
from ki_ros.model.model import KIModel
from ki_ros.model.observation import Observation
from ki_ros.model.prefix import embed_tokens
from ki_ros.model.tokenizer import PromptTokenizer
from ki_ros.resize import resize_with_pad
from ki_ros.rig import POLICY_SLOTS, STATE_DIM
from ki_ros.sim.grounding import Photographer
from ki_ros.training.augment import AugmentConfig, augment_view

FIRST_SEED = 500_000
QUESTIONS = ("where is the {colour} block\n", "find the {colour} block\n", "which place has the {colour} block\n")
BINS = 256
HELD_OUT = 200
SMALLEST = 20
"""Pixels of a block that is asked for; less of it cannot be told from something else."""
AUGMENT = AugmentConfig(brightness=0.2, contrast=0.2, saturation=0.2)

console = Console()


@dataclass(frozen=True)
class View:
    """A view (S, S, 3) uint8, and by colour the share of the block that lies on each patch (P,) and its centre."""

    pixels: np.ndarray
    shares: dict[str, np.ndarray]
    centres: dict[str, tuple[int, int]]


def photograph(photographer: Photographer, seed: int) -> list[View]:
    """The views of a scene in which a block is seen."""
    vision = KIConfig.from_preset("ki_tiny").vision
    side, patch = vision.image_size, vision.patch_size
    views = []
    for picture in photographer.take(seed):
        shares, centres = {}, {}
        for colour, mask in picture.blocks.items():
            seen = resize_with_pad(np.repeat(mask[..., None].astype(np.uint8) * 255, 3, axis=2), side)[..., 0] / 255.0
            total = seen.sum()
            if total < SMALLEST:
                continue
            patches = seen.reshape(side // patch, patch, side // patch, patch).sum(axis=(1, 3))
            shares[colour] = (patches / total).ravel().astype(np.float32)
            rows, columns = np.indices(seen.shape)
            centres[colour] = tuple(int((seen * axis).sum() / total * BINS / side) for axis in (columns, rows))
        if shares:
            views.append(View(resize_with_pad(picture.pixels, side), shares, centres))
    return views


class Learner:
    """The model, the layer beside it, and what they are told."""

    def __init__(self, tokenizer: Path, seed: int) -> None:
        torch.manual_seed(seed)
        self.config = KIConfig.from_preset("ki_tiny")
        self.model = KIModel(self.config)
        self._locate = nn.Linear(self.config.language.width, 1)
        self._tokenizer = PromptTokenizer(tokenizer, 32)
        self._patches = (self.config.vision.image_size // self.config.vision.patch_size) ** 2

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [*self.model.backbone_parameters().values(), *self._locate.parameters()]

    def run(self, rows: list[tuple[np.ndarray, str, np.ndarray, tuple[int, int]]]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the answers' tokens (B, 3, vocabulary) and their targets (B, 3), and log-shares of patches (B, P).

        A row is a view, a question, and the shares and the centre that it asks for.
        """
        batch = len(rows)
        tokens, mask = (np.stack(part) for part in zip(*(self._tokenizer.encode(r[1]) for r in rows), strict=True))
        answers = torch.tensor([self._answer(centre) for *_, centre in rows])
        observation = Observation(
            images={POLICY_SLOTS[0]: pixel_values(np.stack([row[0] for row in rows]))},
            image_masks={POLICY_SLOTS[0]: torch.ones(batch, dtype=torch.bool)},
            state=torch.zeros(batch, STATE_DIM),
            tokenized_prompt=torch.from_numpy(tokens),
            tokenized_prompt_mask=torch.from_numpy(mask),
        )
        prefix, following = embed_tokens(
            self.model.paligemma_with_expert.backbone, self.config, observation, answers, views_required=True
        )
        wanted = torch.cat(
            (
                torch.arange(self._patches).expand(batch, -1),
                prediction_rows(prefix.mask, answers.shape[1]),
            ),
            dim=1,
        )
        hidden = self.model.paligemma_with_expert.backbone_rows(
            prefix.embeddings, prefix.mask, following, torch.ones_like(answers, dtype=torch.bool), wanted
        )
        places = F.log_softmax(self._locate(hidden[:, : self._patches])[..., 0], dim=-1)
        return self.model.vlm_logits(hidden[:, self._patches :]), answers, places

    def _answer(self, centre: tuple[int, int]) -> list[int]:
        ids, mask = self._tokenizer.encode(f" {centre[0]} {centre[1]}")
        return [*ids[mask][1:].tolist(), 1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    shipped = Path(__file__).resolve().parents[1] / "models" / "ki_tiny"
    parser.add_argument("output", nargs="?", type=Path, default=shipped / "backbone")
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    seeds = [FIRST_SEED + number for number in range(arguments.scenes + HELD_OUT)]
    taken: dict[int, list[View]] = dict(
        spread(Photographer, _photograph, seeds, workers=0, title="pictures", console=console)
    )
    # In the order of seeds, whichever process was faster.
    views = [view for seed in seeds[:-HELD_OUT] for view in taken[seed]]
    held_out = [view for seed in seeds[-HELD_OUT:] for view in taken[seed]]
    learner = Learner(shipped / TOKENIZER_FILE, arguments.seed)
    losses = train(learner, views, arguments.steps, arguments.batch, arguments.seed)
    figures = {"pictures": len(views), "steps": arguments.steps, "batch": arguments.batch} | losses
    figures |= evaluate(learner, held_out)
    console.print(figures)
    save_checkpoint(learner.model, arguments.output)
    shutil.copyfile(shipped / TOKENIZER_FILE, arguments.output / TOKENIZER_FILE)
    console.print(f"wrote {arguments.output}")
    if arguments.json is not None:
        write_json(arguments.json, figures)


def _photograph(photographer: Photographer, seed: int) -> tuple[int, list[View]]:
    return seed, photograph(photographer, seed)


def train(learner: Learner, views: list[View], steps: int, batch: int, seed: int) -> dict[str, float]:
    """Runs the steps; returns the last losses."""
    peak, warmup = 1.5e-3, 100
    random = np.random.default_rng(seed)
    parameters = learner.parameters()
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0)
    learner.model.train()
    shown = {}
    with progress_bar("training", "{task.fields[losses]}", console) as bar:
        task = bar.add_task("", total=steps, losses="")
        for step in range(steps):
            rate = peak * min(1.0, (step + 1) / warmup, (steps - step) / (0.8 * steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows = [_row(views[random.integers(len(views))], random, augment=True) for _ in range(batch)]
            logits, answers, places = learner.run(rows)
            answer_loss = F.cross_entropy(logits.flatten(0, 1), answers.flatten())
            place_loss = -(places * torch.from_numpy(np.stack([row[2] for row in rows]))).sum(-1).mean()
            optimizer.zero_grad(set_to_none=True)
            (answer_loss + place_loss).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            shown = {"answer_loss": answer_loss.item(), "place_loss": place_loss.item()}
            bar.update(task, advance=1, losses=", ".join(f"{name} {value:.3f}" for name, value in shown.items()))
    return shown


def _row(view: View, random: np.random.Generator, *, augment: bool):
    colour = str(random.choice(sorted(view.shares)))
    question = str(random.choice(QUESTIONS)).format(colour=colour)
    pixels = augment_view(view.pixels, random, AUGMENT, geometric=False) if augment else view.pixels
    return pixels, question, view.shares[colour], view.centres[colour]


@torch.no_grad()
def evaluate(learner: Learner, views: list[View]) -> dict[str, float]:
    """How often the token with the largest share is one that the block lies on, and the answer within 8 of 256."""
    learner.model.eval()
    random = np.random.default_rng(0)
    on_block, near = [], []
    for first in range(0, len(views), 50):
        rows = [_row(view, random, augment=False) for view in views[first : first + 50]]
        logits, answers, places = learner.run(rows)
        chosen = places.argmax(-1)
        on_block += [float(row[2][place]) > 0.05 for row, place in zip(rows, chosen.tolist(), strict=True)]
        # Of the number tokens, which follow each other in the order of their values.
        near += (logits[:, :2].argmax(-1) - answers[:, :2]).abs().le(8).all(-1).tolist()
    return {"held_out": len(views), "place_accuracy": float(np.mean(on_block)), "answer_accuracy": float(np.mean(near))}


if __name__ == "__main__":
    main()
