#!/usr/bin/env python3
"""Trains the tokenizer of the ki_tiny preset on instructions made from templates.

Deterministic: the same sentencepiece version writes the same file. Byte fallback lets it encode any text.
"""

from __future__ import annotations

import argparse
import io
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from ki_ros.model.prompt import STATE_BINS

VOCAB_SIZE = 1024

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "brown", "black", "white", "grey", "silver")
OBJECTS = (
    "block", "cube", "marker", "pen", "pencil", "cup", "mug", "bowl", "plate", "pot", "pan", "lid", "bottle",
    "can", "jar", "box", "basket", "tray", "towel", "cloth", "sponge", "spoon", "fork", "knife", "whisk",
    "scissors", "tape", "banana", "apple", "orange", "lemon", "carrot", "toy", "ball", "ring", "key", "book",
    "bag", "brush", "stapler", "eraser", "glove", "sock", "hat", "cable", "charger", "remote", "candy", "bar",
    "packet", "sachet",
)  # fmt: skip
PLACES = (
    "table", "shelf", "drawer", "cabinet", "sink", "counter", "stove", "rack", "bin", "box", "bowl", "plate",
    "pot", "cup", "basket", "tray", "mat", "board", "chair", "desk", "corner", "edge", "middle",
)  # fmt: skip
PICK = ("pick up", "grasp", "take", "lift", "get", "grab")
PUT = ("put", "place", "move", "drop", "set", "bring")
RELATIONS = ("in", "on", "into", "onto", "inside", "next to", "behind", "in front of", "to the left of",
             "to the right of", "under", "on top of", "close to", "away from", "between")  # fmt: skip
SINGLE = (
    "open the {place}", "close the {place}", "push the {thing} forward", "pull the {thing} back", "turn on the stove",
    "turn off the light", "press the button", "wipe the {place} with the {thing}", "fold the towel", "stack the blocks",
    "unstack the {thing}s", "pour the water from the {thing} into the {place}", "stir the {place} with the {thing}",
    "move the {thing} to the {side} side of the {place}", "rotate the {thing} clockwise", "hand over the {thing}",
    "remove the lid from the {place}", "cover the {place} with the {thing}", "sort the {thing}s by colour",
    "slide the {thing} to the {side}", "flip the {thing} over", "clean up the {place}", "hang the {thing} on the rack",
    "reach the {thing}", "move to the {thing}", "go to the {thing}", "push the {thing} to the marked area",
    "slide the {thing} onto the marked area", "do not touch the {thing}", "go back to the start", "stop",
    "straighten the {thing}", "unplug the {thing}",
)  # fmt: skip
SIDES = ("left", "right", "front", "back", "upper", "lower", "first", "second", "third", "top", "bottom")


def instructions(count: int, rng: random.Random) -> Iterator[str]:
    """Instructions of one sentence, in the casing and punctuation that people use."""
    for _ in range(count):
        colour = rng.choice((*COLOURS, "", "", ""))
        thing = f"{colour} {rng.choice(OBJECTS)}".strip()
        place, relation = rng.choice(PLACES), rng.choice(RELATIONS)
        text = rng.choice(
            (
                f"{rng.choice(PICK)} the {thing}",
                f"{rng.choice(PUT)} the {thing} {relation} the {place}",
                f"{rng.choice(PUT)} the {thing} {relation} the {rng.choice(COLOURS)} {rng.choice(OBJECTS)}",
                f"{rng.choice(PICK)} the {thing} from the {place} and {rng.choice(PUT)} it {relation} the "
                f"{rng.choice(PLACES)}",
                rng.choice(SINGLE).format(thing=thing, place=place, side=rng.choice(SIDES)),
            )
        )
        text = text[0].upper() + text[1:] if rng.random() < 0.5 else text
        yield text + rng.choice(("", "", "."))


def prompts(count: int = 20_000, seed: int = 0) -> Iterator[str]:
    """Whole prompts: the state's integers and the fixed words matter as much as the instruction."""
    rng = random.Random(seed)
    for text in itertools.islice(instructions(count, rng), count):
        state = " ".join(str(rng.randint(-1, STATE_BINS - 1)) for _ in range(8))
        yield f"Task: {text}, State: {state};"
        yield "Action: "


def train() -> bytes:
    """The sentencepiece model: BPE over unchanged text, digits apart, special ids as in Gemma's.

    Unlike Gemma's, it has one piece for each value of the state: prompts are half as long.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=prompts(),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=["\n", *(f"\u2581{value}" for value in range(-1, STATE_BINS))],
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = Path(__file__).resolve().parents[1] / "models" / "ki_tiny" / "tokenizer.model"
    parser.add_argument("output", nargs="?", type=Path, default=default, help="where the model goes (%(default)s)")
    output = parser.parse_args().output
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(train())
    print(f"{output}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
