"""What may be set otherwise where a run goes on from a checkpoint, and what would make another run of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ki_ros.model.checkpoint import CONFIG_FILE
from ki_ros.model.config import KIConfig
from ki_ros.training.config import TrainConfig, flatten
from ki_ros.training.state import SETTINGS_FILE, ResumeError, read_progress

_DECIDING = (
    # What is at which position of the run.
    "seed",
    "batch_size",
    "overfit",
    # What is trained. Frozen weights are not in the state, and averages cannot be begun in the middle.
    "freeze",
    "lora",
    "ema_decay",
    # What the run keeps as its assets: another setting would not be heeded.
    "norm_stats",
    "norm_minimum_range",
    "tokenizer",
    "fast_tokenizer",
    "fast_vocab_size",
)
"""Fields of a run that stay as they were. Data are compared by their fingerprint, and the model field by field."""

MODEL_INIT = "model.init"
"""Where the model came from. It may have been moved: its weights say whether it is another."""


def changed_settings(checkpoint: Path, config: TrainConfig, model: KIConfig) -> dict[str, tuple[Any, Any]]:
    """What is set otherwise than when a checkpoint was written, and may be: old and new value by dotted field.

    Args:
        checkpoint: to go on from.
        config, model: of the run that is to go on, the latter resolved.

    Raises:
        ResumeError: the checkpoint does not say, or a field has another value that would make it another run; names
            every such field, both values and the fix.
    """
    old, new = _read(checkpoint / SETTINGS_FILE), config.to_dict()
    before = {name: old[name] for name in _DECIDING if name in old} | _model(_read(checkpoint / CONFIG_FILE))
    now = new | _model(model.to_dict())
    wrong = [
        f"{name} is {_text(now[name])}, but the run was begun with {_text(value)}; set {name} to {_text(value)}, or "
        "begin a new run in another output"
        for name, value in before.items()
        if name in now and now[name] != value
    ]
    if config.steps < (step := read_progress(checkpoint).step):
        wrong.append(f"steps is {config.steps}, but the run has made {step}; give as many, or more")
    if wrong:
        raise ResumeError(f"{checkpoint} cannot be gone on from: " + "\n".join(wrong))
    earlier, later = (_others(values) for values in (old, new))
    return {
        name: (earlier.get(name), value) for name, value in later.items() if name in earlier and earlier[name] != value
    }


def describe_changes(changes: dict[str, tuple[Any, Any]]) -> str:
    """Changed settings on one line."""
    return ", ".join(f"{name} {_text(old)} -> {_text(new)}" for name, (old, new) in changes.items())


def _model(values: dict[str, Any]) -> dict[str, Any]:
    """Fields of a model's configuration by the names that set them."""
    return dict(flatten(values, "model.changes."))


def _others(values: dict[str, Any]) -> dict[str, Any]:
    """The fields that may change. Of the model, its preset and changes are in what they come to."""
    kept = {name: value for name, value in values.items() if name not in (*_DECIDING, "output", "model")}
    return dict(flatten(kept)) | {MODEL_INIT: values.get("model", {}).get("init")}


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResumeError(f"{file} cannot be read ({error}); remove {file.parent}") from error
    if not isinstance(values, dict):
        raise ResumeError(f"{file} holds no fields; remove {file.parent}")
    return values


def _text(value: Any) -> str:
    return json.dumps(value)
