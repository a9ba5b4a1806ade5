"""Everything that decides a training run, read strictly from one file and from dotted overrides."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from ki_ros.model.config import KIConfig
from ki_ros.rig import POLICY_VIEWS, ActionSpace, CameraRole
from ki_ros.share import PACKAGE, locate
from ki_ros.training.augment import AugmentConfig

Part = Literal["vision", "projector", "language", "expert"]


class TrainConfigError(ValueError):
    """A training configuration that cannot be run; the message names the field, the value and the fix."""


_STRICT = ConfigDict(extra="forbid")


def _shipped(path: Any) -> Any:
    """The place of a path that begins with `package://ki_ros/`; anything else as it is."""
    if not (isinstance(path, str) and path.startswith(PACKAGE)):
        return path
    try:
        return locate(path)
    except FileNotFoundError as error:
        raise ValueError(f"model.init is {path}; {error}") from None


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where the model comes from.

    Attributes:
        preset: name of a configuration; that of `init` when None.
        init: checkpoint to start from, `package://ki_ros/models/...` for one that ships; None for initial weights,
            which depend on the run's seed alone.
        changes: fields of the configuration to set on top, such as `{knowledge_insulation: false}`.
    """

    __pydantic_config__ = _STRICT

    preset: str | None = None
    init: Annotated[Path | None, BeforeValidator(_shipped)] = None
    changes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.preset is None and self.init is None:
            raise ValueError("model.preset and model.init are both missing; give at least one")


@dataclass(frozen=True, kw_only=True)
class DroidData:
    """Episodes of the DROID dataset as files, see `ki_ros.data.droid`.

    Attributes:
        directory: of the episodes.
        train, held_out: episode numbers, as ranges with both ends included: "0-39", "0-3,7".
        views: cameras to train with, one exterior one at most; none for training on states alone.
        missing_views: whether an episode without images is refused, or trained on without them.
        action_space: what actions are derived in; the model's must be the same.
    """

    __pydantic_config__ = _STRICT

    kind: Literal["droid"] = "droid"
    directory: Path
    train: str
    held_out: str | None = None
    views: tuple[CameraRole, ...] = POLICY_VIEWS
    missing_views: Literal["refuse", "mask"] = "refuse"
    action_space: ActionSpace = ActionSpace.JOINT_VELOCITY


@dataclass(frozen=True, kw_only=True)
class PointingData:
    """Made-up pictures whose answer needs the picture and the instruction, see `ki_ros.data.pointing`.

    Attributes:
        train, held_out: numbers of samples, of different seeds.
        side: of a picture [pixels].
        seed: of the training samples; held-out ones have the next.
    """

    __pydantic_config__ = _STRICT

    kind: Literal["pointing"] = "pointing"
    train: int = 4096
    held_out: int = 256
    side: int = 64
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class CachedData:
    """What data have in common that are read once into a cache, see `ki_ros.data.cache`.

    Attributes:
        directory: of the recordings; None to use `cache` as it is.
        cache: directory of the cache; beside `directory`, with `.cache` at its name's end, when None. It is made or
            brought up to date when a run starts.
        held_out: episodes to evaluate on instead: below 1 their share, from 1 on their number. They are chosen by a
            hash of their ids, so the same ones at every run.
        outcomes: of success, failure and unknown, those of episodes to use.
        drop_idle: whether steps at which nothing happens are left out, but for the first of each pause.
        hold_after_end: whether holding the arm after an episode's end is trained on, as what a chunk near the end goes
            on with. Right for demonstrations that end at rest; otherwise actions past the end do not count, and a
            chunk that reaches there has no FAST tokens. The same where the end is not known: nobody ended the episode
            as a success or a failure, or it was not observed until then.
        views: cameras to train with, one exterior one at most; none for training on states alone.
        missing_views: whether an episode without one of the views is refused, or trained on without it.
        action_space: what actions are derived in; the model's must be the same.
        instruction: of episodes that were recorded without one; empty to refuse them.
        encoding: of the cache's pictures; raw ones are exact and larger.
        quality: of JPEG, 1 to 100.
        build_workers: processes that make the cache; one for each core when None.
    """

    __pydantic_config__ = _STRICT

    directory: Path | None = None
    cache: Path | None = None
    held_out: float = 0.1
    outcomes: tuple[Literal["success", "failure", "unknown"], ...] = ("success",)
    drop_idle: bool = True
    hold_after_end: bool = False
    views: tuple[CameraRole, ...] = POLICY_VIEWS
    missing_views: Literal["refuse", "mask"] = "refuse"
    action_space: ActionSpace = ActionSpace.JOINT_VELOCITY
    instruction: str = ""
    encoding: Literal["jpeg", "raw"] = "jpeg"
    quality: int = 95
    build_workers: int | None = None

    def __post_init__(self) -> None:
        if self.directory is None and self.cache is None:
            raise ValueError("data.directory and data.cache are both missing; give at least one")
        if not self.outcomes:
            raise ValueError("data.outcomes is empty; give some of success, failure, unknown")
        if not (0 <= self.held_out < math.inf and (self.held_out < 1 or self.held_out == int(self.held_out))):
            raise ValueError(
                f"data.held_out is {self.held_out}; give a share of the episodes below 1, or a whole number of them"
            )
        if not 1 <= self.quality <= 100:
            raise ValueError(f"data.quality is {self.quality}; give 1 to 100")
        if self.build_workers is not None:
            _positive(self, "data", "build_workers")

    @property
    def cache_directory(self) -> Path:
        """Where the cache is."""
        if self.cache is not None:
            return self.cache
        assert self.directory is not None
        return self.directory.with_name(f"{self.directory.resolve().name}.cache")


@dataclass(frozen=True, kw_only=True)
class BagsData(CachedData):
    """Episodes in rosbag2 recordings.

    Attributes:
        parameters: parameter file of the graph that they were recorded with; None to find the topics in the bags.
    """

    kind: Literal["bags"] = "bags"
    parameters: Path | None = None


@dataclass(frozen=True, kw_only=True)
class LeRobotData(CachedData):
    """Episodes in a LeRobot dataset v3.0.

    Attributes:
        preset: what its features are called, see `ki_ros.data.lerobot.PRESETS`; "auto" tells it from them.
        features: fields of `ki_ros.data.lerobot.FeatureMap` to set on top, such as `{outcome: success}`.
    """

    kind: Literal["lerobot"] = "lerobot"
    preset: Literal["auto", "ki_ros", "droid", "droid_velocity"] = "auto"
    features: dict[str, Any] = field(default_factory=dict)


Data = Annotated[DroidData | PointingData | BagsData | LeRobotData, Field(discriminator="kind")]

_KINDS = ("droid", "pointing", "bags", "lerobot")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning rate.

    Attributes:
        learning_rate: its peak, after `warmup_steps` of linear increase; then a cosine to `end_learning_rate`.
        end_learning_rate: a tenth of the peak when None.
        backbone_scale, expert_scale: factors of the learning rate of either side.
        beta1, beta2, epsilon, weight_decay: of AdamW; biases and norms do not decay.
        clip_norm: largest gradient norm, of backbone and expert each for itself: with insulation they are two networks,
            and one must not shorten the other's step.
    """

    __pydantic_config__ = _STRICT

    learning_rate: float = 2.5e-5
    end_learning_rate: float | None = None
    warmup_steps: int = 1000
    backbone_scale: float = 1.0
    expert_scale: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 1e-10
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        _positive(self, "optimizer", "learning_rate", "clip_norm", "epsilon")
        _not_negative(self, "optimizer", "warmup_steps", "weight_decay", "backbone_scale", "expert_scale")


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """Low-rank adapters by peft; checkpoints hold the merged weights.

    Attributes:
        rank, alpha: of an adapter; its product is scaled by alpha / rank.
        parts: where linear layers get one. What has none is trained as it is, unless it is frozen.
    """

    __pydantic_config__ = _STRICT

    rank: int = 16
    alpha: float = 16.0
    parts: tuple[Literal["language", "expert"], ...] = ("language",)

    def __post_init__(self) -> None:
        _positive(self, "lora", "rank", "alpha")
        if not self.parts:
            raise ValueError("lora.parts is empty; name language or expert, or leave lora out")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Held-out evaluation.

    Attributes:
        every: steps between evaluations; 0 for the end alone.
        samples: most samples, spread evenly over the held-out data.
        num_steps: integration steps of the sampled actions.
        decode_fast: whether the backbone's own actions are decoded and compared, too.
    """

    __pydantic_config__ = _STRICT

    every: int = 1000
    samples: int = 256
    num_steps: int = 10
    decode_fast: bool = False

    def __post_init__(self) -> None:
        _positive(self, "evaluation", "samples", "num_steps")
        _not_negative(self, "evaluation", "every")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run.

    Attributes:
        output: directory of the run: configuration, assets, metrics, checkpoints.
        model, data, optimizer, augment, lora, evaluation: see their classes; lora None for none.
        norm_stats: "data" to compute them from the training data, "checkpoint" for those beside `model.init`, or a
            path.
        norm_minimum_range: least distance between the 1 % and the 99 % quantile of statistics that are computed [rad,
            or closedness of the gripper]; 0 refuses data with a dimension that does not move.
        tokenizer: sentencepiece model of the prompts; what ships with the preset or lies beside `model.init` when None.
        fast_tokenizer: "fit" to fit one to the training data, or the directory of one.
        fast_vocab_size: of a fitted one.
        fast_max_tokens: most FAST tokens of a chunk, its end included. Longer ones stop the run.
        overfit: train and evaluate on that many samples, spread evenly over the training data: a check that a model can
            learn at all. None to use all of them.
        steps: optimiser steps.
        batch_size: samples of a step, over all processes and accumulated micro-batches.
        micro_batch_size: samples of one forward pass; the batch divided by the processes when None.
        flow_samples: draws of noise and time per sample and backbone pass.
        seed: of weights, order, augmentation, noise and times.
        precision: to compute in; master weights, optimiser and average are float32 either way.
        device: "auto" for CUDA where there is one.
        distributed: how several processes share the work; "auto" is ddp.
        activation_checkpointing: recompute each layer in the backward pass.
        ema_decay: of the average of the weights, which is what is evaluated and deployed; None for none.
        freeze: parts that are not trained.
        save_every: steps between checkpoints; 0 for the end alone.
        keep: how many of the last checkpoints stay.
        keep_every: checkpoints of every so many steps stay for good; 0 for none.
        log_every: steps between lines of metrics.
        workers: processes that load data, for each training process; 0 for none beside it.
        tensorboard: whether TensorBoard files are written.
    """

    __pydantic_config__ = _STRICT

    output: Path
    model: ModelSource
    data: Data
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    lora: LoRAConfig | None = None
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    norm_stats: str = "data"
    norm_minimum_range: float = 0.0
    tokenizer: Path | None = None
    fast_tokenizer: str = "fit"
    fast_vocab_size: int = 1024
    fast_max_tokens: int = 128
    overfit: int | None = None
    steps: int = 30_000
    batch_size: int = 32
    micro_batch_size: int | None = None
    flow_samples: int = 1
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    device: str = "auto"
    distributed: Literal["auto", "ddp", "fsdp"] = "auto"
    activation_checkpointing: bool = False
    ema_decay: float | None = 0.999
    freeze: tuple[Part, ...] = ()
    save_every: int = 1000
    keep: int = 2
    keep_every: int = 0
    log_every: int = 10
    workers: int = 2
    tensorboard: bool = True

    def __post_init__(self) -> None:
        _positive(self, "", "steps", "batch_size", "flow_samples", "keep", "log_every", "fast_max_tokens")
        _positive(self, "", "fast_vocab_size")
        _not_negative(self, "", "save_every", "keep_every", "workers", "seed", "norm_minimum_range")
        if self.overfit is not None:
            _positive(self, "", "overfit")
        if self.micro_batch_size is not None:
            _positive(self, "", "micro_batch_size")
        if self.optimizer.warmup_steps >= self.steps:
            raise ValueError(
                f"optimizer.warmup_steps is {self.optimizer.warmup_steps}, steps is {self.steps}; warm up for fewer"
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; give a number between 0 and 1, or null for no average")
        if self.norm_stats == "checkpoint" and self.model.init is None:
            raise ValueError("norm_stats is 'checkpoint', but model.init is missing; give the checkpoint, or 'data'")

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `parse` reads back."""
        return _ADAPTER.dump_python(self, mode="json")

    def split_batch(self, world_size: int) -> tuple[int, int]:
        """(samples of one forward pass, passes accumulated per step) of each of `world_size` processes.

        Raises:
            TrainConfigError: the batch cannot be split that way.
        """
        micro = self.micro_batch_size or self.batch_size // world_size
        if micro == 0 or self.batch_size % (micro * world_size):
            raise TrainConfigError(
                f"batch_size is {self.batch_size}, not a multiple of micro_batch_size {micro or 1} times {world_size} "
                "processes; change one of them"
            )
        return micro, self.batch_size // (micro * world_size)


_ADAPTER = TypeAdapter(TrainConfig)


def parse(values: Mapping[str, Any]) -> TrainConfig:
    """The configuration in a nested mapping.

    Raises:
        TrainConfigError: names every field that is unknown, missing or wrong, its value, and what it should be.
    """
    try:
        return _ADAPTER.validate_python(dict(values))
    except ValidationError as error:
        raise TrainConfigError("\n".join(_describe(item) for item in error.errors())) from None


def load(path: Path, overrides: Sequence[str] = (), *, bags: Path | None = None) -> TrainConfig:
    """The configuration in a YAML file with `overrides` such as `optimizer.learning_rate=1e-4` on top.

    Args:
        path: of the file.
        overrides: as of `apply_overrides`.
        bags: directory of bags to train on in place of the file's data, see `with_bags`.

    Raises:
        TrainConfigError: a file that cannot be read, or as `parse`.
    """
    try:
        values = read_yaml(path)
        return parse(apply_overrides(values if bags is None else with_bags(values, bags), overrides))
    except TrainConfigError as error:
        raise TrainConfigError(f"{path}: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises TrainConfigError."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise TrainConfigError(f"{path}: cannot be read as YAML ({error})") from error
    if not isinstance(values, dict):
        raise TrainConfigError(f"{path}: holds {type(values).__name__}; give a mapping of fields to values")
    return values


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of nested values with `a.b=value` set, the value read as YAML.

    Raises:
        TrainConfigError: not of that form, or a path through something that is no mapping.
    """
    result = _copy(values)
    for override in overrides:
        name, separator, text = override.partition("=")
        if not separator or not name:
            raise TrainConfigError(f"override {override!r}: give it as field=value, such as steps=100")
        at = result
        *parents, leaf = name.split(".")
        for parent in parents:
            at = at.setdefault(parent, {})
            if not isinstance(at, dict):
                raise TrainConfigError(f"override {override!r}: {parent} is {at!r}, not a mapping; set it as a whole")
        at[leaf] = parse_value(text)
    return result


def with_bags(values: Mapping[str, Any], directory: Path) -> dict[str, Any]:
    """A copy of nested values that trains on the bags in a directory.

    Of other data than bags, only views and action space are taken over: they say what the model is given.
    """
    result = _copy(values)
    data = result.get("data")
    data = data if isinstance(data, dict) else {}
    if data.get("kind") == "bags":
        # A cache is one directory's.
        kept = {name: value for name, value in data.items() if name != "cache"}
    else:
        kept = {name: data[name] for name in ("views", "missing_views", "action_space") if name in data}
    result["data"] = kept | {"kind": "bags", "directory": str(directory)}
    return result


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of nested values by their dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def parse_value(text: str) -> Any:
    """A value as YAML has it; `1e-4` is a number here, as everywhere but in YAML 1.1."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise TrainConfigError(f"value {text!r} cannot be read as YAML ({error})") from error
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def model_config(source: ModelSource, base: KIConfig) -> KIConfig:
    """The model's configuration: `base` with the source's changes.

    Raises:
        ConfigError: a field that is unknown or wrong.
    """
    values = base.to_dict()
    for name, value in source.changes.items():
        if isinstance(value, Mapping) and isinstance(values.get(name), Mapping):
            values[name] = {**values[name], **value}
        else:
            values[name] = value
    return KIConfig.from_dict(values)


def episode_numbers(text: str, name: str) -> list[int]:
    """The numbers in ranges such as "0-3,7". Raises TrainConfigError, which names the field."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise TrainConfigError(f"{name} is {text!r}; give numbers and ranges such as 0-39,45")
        numbers.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return numbers


def _describe(item: Mapping[str, Any]) -> str:
    # The discriminator's value is part of pydantic's location, but no field.
    name = ".".join(str(part) for part in item["loc"] if part not in _KINDS)
    if item["type"] == "missing":
        return f"{name} is missing; add it"
    if item["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{name} is {item['input']!r}, but there is no such field; remove it"
    message = item["msg"].removeprefix("Value error, ")
    return (
        message if item["type"] == "value_error" else f"{name} is {item['input']!r}; {message[0].lower()}{message[1:]}"
    )


def _copy(values: Any) -> Any:
    return {name: _copy(value) for name, value in values.items()} if isinstance(values, Mapping) else values


def _positive(config: Any, prefix: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{prefix}{'.' if prefix else ''}{name} is {value}; give a positive number")


def _not_negative(config: Any, prefix: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{prefix}{'.' if prefix else ''}{name} is {value}; give 0 or more")
