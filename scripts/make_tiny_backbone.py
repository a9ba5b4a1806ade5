#!/usr/bin/env python3
"""Trains the backbone of the ki_tiny preset to find blocks in pictures and to read numbers: its stand-in for PaliGemma.

    scripts/make_tiny_backbone.py [DIRECTORY] [--scenes 4000] [--steps 1200] [--batch 32] [--seed 0] [--json FILE]

pi0.5 begins with a vision-language model that knows what a red block is and where it is in a picture. Robot data alone
teach that to a small model only slowly: of 32,000 demonstrated chunks ki_tiny had learnt nothing of it. So it begins
with a backbone that has learnt to answer "where is the red block" with the place in 256ths of the exterior view from
the left and from the top (Beyer et al. 2024, arXiv 2407.07726, train PaliGemma on detection likewise). Most questions
are put as a policy's instructions are, with a state that has nothing to do with the picture. Beside the answer each
token of a picture says, through a linear layer that is dropped afterwards, how much of the block lies on it.

And it knows numbers. So each token of a state says through another such layer which of the state's values it is, and
the prompt's last token says them all: asked for places alone, the backbone learns to overlook the state, and a policy
that begins with it goes on doing so. That is read where the last layer has its keys and values from, as the expert sees
nothing of a prompt that comes later.

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
from ki_ros.model.losses import prediction_rows
from ki_ros.model.model import KIModel
from ki_ros.model.observation import Observation, pixel_values
from ki_ros.model.prefix import embed_tokens
from ki_ros.model.prompt import build_prompt
from ki_ros.model.tokenizer import PromptTokenizer
from ki_ros.resize import resize_with_pad
from ki_ros.rig import POLICY_SLOTS, STATE_DIM
from ki_ros.sim.grounding import Photographer, Picture
from ki_ros.sim.tasks import Task
from ki_ros.training.augment import AugmentConfig, augment_view
from ki_ros.training.schedule import learning_rate

FIRST_SEED = 500_000
QUESTIONS = ("where is the {colour} block\n", "find the {colour} block\n", "which place has the {colour} block\n")
INSTRUCTIONS = tuple(phrasing for task in Task for phrasing in task.phrasings)
QUESTION_SHARE = 0.25
"""Of rows that are put as a question; the others as an instruction."""
BINS = 256
HELD_OUT = 200
SMALLEST = 20
"""Pixels of a block that is asked for; less of it cannot be told from something else."""
AUGMENT = AugmentConfig(brightness=0.2, contrast=0.2, saturation=0.2)
AFTER_STATE = 5
"""Tokens of a prompt after those of its state, which are one for each value."""
PEAK, WARMUP = 1.5e-3, 100
"""Learning rate, and steps until it is reached."""
VISION = KIConfig.from_preset("ki_tiny").vision

console = Console()


@dataclass(frozen=True)
class View:
    """A view (S, S, 3) uint8, and by colour the share of the block that lies on each patch (P,) and its centre."""

    pixels: np.ndarray
    shares: dict[str, np.ndarray]
    centres: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Row:
    """Both views (S, S, 3) uint8, what is asked, what lies on each patch of each view, and the answer.

    Attributes:
        state: (8,) of the prompt, normalised; None where it has none.
        shares: (2, P) float32; all zero in a view that does not show the block.
        centre: of the block in the exterior view, in 256ths from the left and from the top.
    """

    pixels: list[np.ndarray]
    prompt: str
    state: np.ndarray | None
    shares: np.ndarray
    centre: tuple[int, int]


def view_of(picture: Picture) -> View:
    """What of a picture the model is given and asked for."""
    side, patch = VISION.image_size, VISION.patch_size
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
    return View(resize_with_pad(picture.pixels, side), shares, centres)


@dataclass(frozen=True)
class Said:
    """What the model says of a batch.

    Attributes:
        logits, answers: (B, 3, vocabulary) of the answers' tokens, and these (B, 3).
        places: (B, 2, P) log-shares of patches.
        states: (N, 9, 8) what each token of the state, and the prompt's last one, say of the N rows that have a state.
    """

    logits: Tensor
    answers: Tensor
    places: Tensor
    states: Tensor


class Learner:
    """The model, the layers beside it, and what they are told."""

    def __init__(self, tokenizer: Path, seed: int) -> None:
        torch.manual_seed(seed)
        self.config = KIConfig.from_preset("ki_tiny")
        self.model = KIModel(self.config)
        self._locate = nn.Linear(self.config.language.width, 1)
        self._read = nn.Linear(self.config.language.width, STATE_DIM)
        self._tokenizer = PromptTokenizer(tokenizer, 40)
        self._stream = torch.empty(0)
        layer = self.model.paligemma_with_expert.backbone.language_model.layers[-1]
        layer.input_layernorm.register_forward_hook(self._keep)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [*self.model.backbone_parameters().values(), *self._locate.parameters(), *self._read.parameters()]

    def run(self, rows: list[Row]) -> Said:
        """What the model says of these rows."""
        batch, patches = len(rows), VISION.tokens
        tokens, mask = (np.stack(part) for part in zip(*(self._tokenizer.encode(r.prompt) for r in rows), strict=True))
        answers = torch.tensor([self._answer(row.centre) for row in rows])
        pixels = (torch.from_numpy(np.stack([row.pixels[view] for row in rows])) for view in range(2))
        views = [pixel_values(p.permute(0, 3, 1, 2)) for p in pixels]
        observation = Observation(
            images=dict(zip(POLICY_SLOTS, views, strict=False)),
            image_masks=dict.fromkeys(POLICY_SLOTS[:2], torch.ones(batch, dtype=torch.bool)),
            state=torch.zeros(batch, STATE_DIM),
            tokenized_prompt=torch.from_numpy(tokens),
            tokenized_prompt_mask=torch.from_numpy(mask),
        )
        backbone = self.model.paligemma_with_expert.backbone
        prefix, following = embed_tokens(backbone, self.config, observation, answers, views_required=True)
        wanted = torch.cat(
            (torch.arange(2 * patches).expand(batch, -1), prediction_rows(prefix.mask, answers.shape[1])), dim=1
        )
        hidden = self.model.paligemma_with_expert.backbone_rows(
            prefix.embeddings, prefix.mask, following, torch.ones_like(answers, dtype=torch.bool), wanted
        )
        places = self._locate(hidden[:, : 2 * patches])[..., 0].unflatten(1, (2, patches))
        last = 2 * patches - 1 + torch.from_numpy(mask).sum(1, keepdim=True)
        spoken = torch.cat((last - AFTER_STATE + torch.arange(1 - STATE_DIM, 1), last), dim=1)
        stateful = torch.tensor([number for number, row in enumerate(rows) if row.state is not None], dtype=torch.int64)
        states = self._read(self._stream[stateful[:, None], spoken[stateful]])
        return Said(self.model.vlm_logits(hidden[:, 2 * patches :]), answers, F.log_softmax(places, dim=-1), states)

    def _keep(self, _module: nn.Module, _inputs: tuple[Tensor], output: Tensor) -> None:
        self._stream = output

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
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    scenes, held_out = take_pictures(arguments.scenes)
    learner = Learner(shipped / TOKENIZER_FILE, arguments.seed)
    figures = {"scenes": len(scenes), "steps": arguments.steps, "batch": arguments.batch}
    figures |= train(learner, scenes, arguments.steps, arguments.batch, arguments.seed)
    figures |= evaluate(learner, held_out)
    console.print(figures)
    save_checkpoint(learner.model, arguments.output)
    shutil.copyfile(shipped / TOKENIZER_FILE, arguments.output / TOKENIZER_FILE)
    console.print(f"wrote {arguments.output}", markup=False)
    if arguments.json is not None:
        write_json(arguments.json, figures)


def take_pictures(scenes: int) -> tuple[list[list[View]], list[list[View]]]:
    """Exterior and wrist view of so many scenes to train on, and of `HELD_OUT` others."""
    seeds = [FIRST_SEED + number for number in range(scenes + HELD_OUT)]
    taken = dict(spread(Photographer, _photograph, seeds, workers=0, title="pictures", console=console))
    # In the order of seeds, whichever process was faster. Where the arm hides all blocks there is nothing to ask for.
    kept = [[taken[seed] for seed in some if taken[seed][0].shares] for some in (seeds[:scenes], seeds[scenes:])]
    return kept[0], kept[1]


def _photograph(photographer: Photographer, seed: int) -> tuple[int, list[View]]:
    return seed, [view_of(picture) for picture in photographer.take(seed)]


def train(learner: Learner, scenes: list[list[View]], steps: int, batch: int, seed: int) -> dict[str, float]:
    """Runs the steps; returns the last losses."""
    random = np.random.default_rng(seed)
    parameters = learner.parameters()
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=0.0)
    learner.model.train()
    shown = {}
    with progress_bar("training", "{task.fields[losses]}", console) as bar:
        task = bar.add_task("", total=steps, losses="")
        for step in range(steps):
            rate = learning_rate(step, peak=PEAK, end=PEAK / 50, warmup_steps=min(WARMUP, steps - 1), total_steps=steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            rows = [draw_row(scenes[random.integers(len(scenes))], random, augment=True) for _ in range(batch)]
            said = learner.run(rows)
            answer_loss = F.cross_entropy(said.logits.flatten(0, 1), said.answers.flatten())
            place_loss = -(said.places * torch.from_numpy(np.stack([row.shares for row in rows]))).sum((1, 2)).mean()
            state_loss = F.mse_loss(said.states, state_targets(rows), reduction="sum") / len(rows)
            optimizer.zero_grad(set_to_none=True)
            (answer_loss + place_loss + state_loss).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            losses = {"answer_loss": answer_loss, "place_loss": place_loss, "state_loss": state_loss}
            shown = {name: loss.item() for name, loss in losses.items()}
            bar.update(task, advance=1, losses=", ".join(f"{name} {value:.3f}" for name, value in shown.items()))
    return shown


def draw_row(views: list[View], random: np.random.Generator, *, augment: bool, colour: str | None = None) -> Row:
    """A question about one of the blocks that the exterior view shows, or about the one of that colour."""
    colour = colour or str(random.choice(sorted(views[0].shares)))
    state = None
    if random.random() < QUESTION_SHARE:
        prompt = str(random.choice(QUESTIONS)).format(colour=colour)
    else:
        instruction = str(random.choice(INSTRUCTIONS)).format(colour=colour)
        state = random.uniform(-1.0, 1.0, STATE_DIM)
        prompt = build_prompt(instruction, state)
    pixels = [augment_view(v.pixels, random, AUGMENT, geometric=False) if augment else v.pixels for v in views]
    nothing = np.zeros(VISION.tokens, dtype=np.float32)
    shares = np.stack([view.shares.get(colour, nothing) for view in views])
    return Row(pixels, prompt, state, shares, views[0].centres[colour])


def state_targets(rows: list[Row]) -> Tensor:
    """(N, 9, 8) of the N rows that have a state: each token's own value in its own place, then all of them."""
    stateful = np.array([row.state for row in rows if row.state is not None]).reshape(-1, STATE_DIM)
    states = torch.from_numpy(stateful.astype(np.float32))
    return torch.cat((torch.diag_embed(states), states[:, None]), dim=1)


@torch.no_grad()
def evaluate(learner: Learner, scenes: list[list[View]]) -> dict[str, float]:
    """About every block of the scenes: how often the patch with the largest share is one that the block lies on, in
    the exterior and in the wrist view, how often the answer is within 8 of 256, and the mean absolute error of the
    state's values, in their range of -1 to 1, as the prompt's last token says them."""
    learner.model.eval()
    random = np.random.default_rng(0)
    rows = [draw_row(views, random, augment=False, colour=c) for views in scenes for c in sorted(views[0].shares)]
    on_block: tuple[list[float], list[float]] = ([], [])
    near: list[bool] = []
    misread: list[float] = []
    for first in range(0, len(rows), 50):
        some = rows[first : first + 50]
        said = learner.run(some)
        for row, chosen in zip(some, said.places.argmax(-1).tolist(), strict=True):
            for view, place in enumerate(chosen):
                if row.shares[view].any():
                    on_block[view].append(float(row.shares[view, place]) > 0.05)
        # Of the number tokens, which follow each other in the order of their values.
        near += (said.logits[:, :2].argmax(-1) - said.answers[:, :2]).abs().le(8).all(-1).tolist()
        misread += (said.states - state_targets(some))[:, -1].abs().mean(-1).tolist()
    exterior, wrist = (float(np.mean(found)) for found in on_block)
    return {
        "questions": len(rows),
        "exterior": exterior,
        "wrist": wrist,
        "answers": float(np.mean(near)),
        "state_error": float(np.mean(misread)),
    }


if __name__ == "__main__":
    main()
