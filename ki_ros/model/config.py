"""Sizes and switches of a KI policy, read strictly: a value that cannot be meant is refused by name."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ki_ros.rig import STATE_DIM, ActionSpace

T = TypeVar("T")


class ConfigError(ValueError):
    """A configuration that cannot be built; the message names the field, the value and the fix."""


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """SigLIP: width of a token, layers, heads, hidden width of the MLP, image side and patch side [pixels]."""

    width: int
    depth: int
    heads: int
    mlp: int
    image_size: int
    patch_size: int

    def __post_init__(self) -> None:
        _require_positive(self, "vision")
        if self.width % self.heads:
            raise ConfigError(
                f"vision.width is {self.width}, not a multiple of vision.heads {self.heads}; change one of them"
            )
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"vision.image_size is {self.image_size}, not a multiple of vision.patch_size {self.patch_size}; "
                "change one of them"
            )

    @property
    def tokens(self) -> int:
        """Number of tokens of one view."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """The language backbone. Depth, heads, kv_heads and head_dim are the expert's too: the layers are paired."""

    width: int
    mlp: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int

    def __post_init__(self) -> None:
        _require_positive(self, "language")
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"language.heads is {self.heads}, not a multiple of language.kv_heads {self.kv_heads}; "
                "change one of them"
            )
        if self.head_dim % 2:
            raise ConfigError(
                f"language.head_dim is {self.head_dim}; rotary embedding pairs its halves, so give an even number"
            )


@dataclass(frozen=True, kw_only=True)
class ExpertConfig:
    """The action expert: width (also that of the time condition) and hidden width of the MLP."""

    width: int
    mlp: int

    def __post_init__(self) -> None:
        _require_positive(self, "expert")
        if self.width % 2 or self.width < 4:
            raise ConfigError(
                f"expert.width is {self.width}; the time embedding is half sines and half cosines over at least two "
                "periods, so give an even number, 4 or more"
            )


@dataclass(frozen=True, kw_only=True)
class KIConfig:
    """Everything that decides the shape and the meaning of a KI policy's weights.

    Attributes:
        vision, language, expert: sizes of the three parts.
        action_dim: values of one action as the weights have them; public checkpoints are zero padded to 32.
        action_horizon: actions of one chunk.
        max_token_len: most tokens of a prompt.
        action_space: what the first seven values of an action mean.
        knowledge_insulation: whether the expert reads detached backbone keys and values (arXiv 2505.23705).
        knowledge_insulation_lambda: weight of the FAST token loss beside the flow loss.
        fast_skip_tokens: ids at the top of the vocabulary that no FAST token takes. PaliGemma has 1024 `<loc>` and 128
            `<seg>` tokens there; openpi's own skips only the latter, which puts FAST on top of `<loc>`.
        committed_rows: up to how many given actions the expert is trained to go on from (arXiv 2512.05964); 0 for none.
        padding_loss: whether the flow loss counts the padding of an action too, as openpi's does. Sampling integrates
            the padding from noise, and where it is not learnt the expert sees other padding than in training.
    """

    vision: VisionConfig
    language: LanguageConfig
    expert: ExpertConfig
    action_dim: int
    action_horizon: int
    max_token_len: int
    action_space: ActionSpace = ActionSpace.JOINT_VELOCITY
    knowledge_insulation: bool = True
    knowledge_insulation_lambda: float = 0.5
    fast_skip_tokens: int = 1152
    committed_rows: int = 0
    padding_loss: bool = False

    @property
    def learnt_dims(self) -> int:
        """How many leading values of an action carry the flow loss."""
        return self.action_dim if self.padding_loss else min(self.action_dim, STATE_DIM)

    def __post_init__(self) -> None:
        _require_positive(self, "", but=("committed_rows",))
        if not 0 <= self.committed_rows < self.action_horizon:
            raise ConfigError(
                f"committed_rows is {self.committed_rows}; give 0 or more, and less than action_horizon, "
                f"{self.action_horizon}"
            )
        weight = self.knowledge_insulation_lambda
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"knowledge_insulation_lambda is {weight}; give a finite number, 0 or more")

    @classmethod
    def from_preset(cls, name: str) -> KIConfig:
        """The configuration of that name. Raises ValueError that lists the presets there are."""
        if name not in PRESETS:
            raise ConfigError(f"preset {name!r} is not known; use one of {', '.join(PRESETS)}")
        return PRESETS[name]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> KIConfig:
        """The configuration in a nested mapping, as `to_dict` gives it; fields with a default may be left out.

        Raises:
            ConfigError: a field that is unknown, missing, of the wrong type, or inconsistent with another.
        """
        return _from_dict(cls, values, "")

    @classmethod
    def from_json(cls, path: str | Path) -> KIConfig:
        """The configuration in a JSON file. Raises ConfigError, which names the file too."""
        path = Path(path)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read as JSON ({error})") from error
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """A nested dictionary of plain values that `from_dict` reads back."""
        return dataclasses.asdict(self) | {"action_space": self.action_space.value}


def _require_positive(config: Any, prefix: str, but: tuple[str, ...] = ()) -> None:
    for item in dataclasses.fields(config):
        if item.name in but:
            continue
        value = getattr(config, item.name)
        if isinstance(value, int) and not isinstance(value, bool) and value < 1:
            raise ConfigError(f"{_join(prefix, item.name)} is {value}; give a positive integer")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _from_dict(cls: type[T], values: Any, prefix: str) -> T:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{prefix or 'the configuration'} is {values!r}; give a mapping of fields to values")
    fields = {item.name: item for item in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = [name for name in values if name not in fields]
    if unknown:
        name = unknown[0]
        raise ConfigError(
            f"{_join(prefix, name)} is {values[name]!r}, but there is no such field; remove it or use one of "
            f"{', '.join(fields)}"
        )
    missing = [name for name, item in fields.items() if item.default is dataclasses.MISSING and name not in values]
    if missing:
        raise ConfigError(f"{_join(prefix, missing[0])} is missing; add it ({len(missing)} missing: {missing})")
    types = typing.get_type_hints(cls)
    return cls(**{name: _convert(types[name], value, _join(prefix, name)) for name, value in values.items()})


def _convert(kind: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _from_dict(kind, value, name)
    if kind is ActionSpace:
        try:
            return ActionSpace.parse(value)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigError(f"{name} is {value!r} ({type(value).__name__}); give a value of type {kind.__name__}")
    return value


PRESETS = {
    # PaliGemma (SigLIP So400m/14, gemma_2b) with a gemma_300m expert, as pi0.5 has them.
    "pi05_droid_ki": KIConfig(
        vision=VisionConfig(width=1152, depth=27, heads=16, mlp=4304, image_size=224, patch_size=14),
        language=LanguageConfig(width=2048, mlp=16384, depth=18, heads=8, kv_heads=1, head_dim=256, vocab_size=257152),
        expert=ExpertConfig(width=1024, mlp=4096),
        action_dim=STATE_DIM,
        action_horizon=15,
        max_token_len=200,
    ),
    # Of the same proportions, for a small GPU or a patient CPU; no weights ship for it.
    "ki_300m": KIConfig(
        vision=VisionConfig(width=768, depth=12, heads=12, mlp=3072, image_size=224, patch_size=14),
        language=LanguageConfig(width=1024, mlp=3072, depth=12, heads=8, kv_heads=1, head_dim=128, vocab_size=8192),
        expert=ExpertConfig(width=512, mlp=2048),
        action_dim=STATE_DIM,
        action_horizon=15,
        max_token_len=200,
        fast_skip_tokens=128,
    ),
    # The vocabulary is the shipped tokenizer's 1024 pieces, then room for 2048 FAST tokens and the 128 ids kept clear
    # above them.
    "ki_tiny": KIConfig(
        vision=VisionConfig(width=128, depth=3, heads=4, mlp=384, image_size=224, patch_size=32),
        language=LanguageConfig(width=128, mlp=384, depth=4, heads=4, kv_heads=1, head_dim=32, vocab_size=3200),
        expert=ExpertConfig(width=96, mlp=256),
        action_dim=STATE_DIM,
        action_horizon=15,
        max_token_len=200,
        fast_skip_tokens=128,
    ),
}
"""Configurations by name."""
