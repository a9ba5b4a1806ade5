"""From camera views, joint state and an instruction to a chunk of actions in the rig's units. Knows no ROS."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ki_ros.commitment import Commitment
from ki_ros.model.checkpoint import (
    NORM_STATS_FILE,
    TOKENIZER_FILE,
    checkpoint_directory,
    load_checkpoint,
    resolve_config,
)
from ki_ros.model.config import KIConfig
from ki_ros.model.engine import EngineError, make_engine, verify
from ki_ros.model.inputs import InputError, PolicyInputs, collate_inputs
from ki_ros.model.model import KIModel
from ki_ros.model.normalize import NormStats
from ki_ros.model.observation import Observation
from ki_ros.model.rtc import Guidance, soft_mask
from ki_ros.model.tokenizer import PALIGEMMA_SOURCES, PromptTokenizer
from ki_ros.rig import NUM_JOINTS, STATE_DIM, ActionSpace, CameraRole
from ki_ros.share import find_share, locate

logger = logging.getLogger(__name__)

_UNTRAINED = "untrained"
"""Directory of what ships with a preset for weights that are untrained."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PolicyError(ValueError):
    """A policy that cannot be loaded, or an input or output that must not be acted upon; the message names it."""


def model_directory(preset: str) -> Path:
    """The directory `models/<preset>` with the files that ship for a preset.

    Raises:
        PolicyError: nothing ships for that preset; the message lists the places.
    """
    try:
        return find_share("models", preset)
    except FileNotFoundError as error:
        raise PolicyError(f"no files ship for preset {preset!r}: {error}") from error


class Policy:
    """A model with its normalisation and its tokenizer. Not safe to call from several threads at once.

    Args:
        model: in evaluation mode, on the device to run on.
        norm_stats: of states and actions in the rig's units.
        tokenizer: of the model's prompts.
        num_steps: integration steps of an inference.
        seed: of the noise that inference starts from; None for a different one in each process.
        base_view: the exterior camera that the model sees.
        engine: how inferences are computed, one of `ki_ros.model.engine.ENGINES`, or "auto".

    Raises:
        PolicyError: parts that do not belong together, or an engine that this device cannot run.
    """

    def __init__(
        self,
        model: KIModel,
        norm_stats: NormStats,
        tokenizer: PromptTokenizer,
        *,
        num_steps: int = 10,
        seed: int | None = None,
        base_view: CameraRole = CameraRole.EXTERIOR_1,
        engine: str = "auto",
    ) -> None:
        config = model.config
        if config.action_dim < STATE_DIM:
            raise PolicyError(f"action_dim is {config.action_dim}; a DROID policy has {STATE_DIM} or more")
        if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
            raise PolicyError(f"num_steps is {num_steps!r}; give a positive integer")
        try:
            self.inputs = PolicyInputs(config, norm_stats, tokenizer, base_view=base_view)
        except InputError as error:
            raise PolicyError(str(error)) from error
        self.model = model
        self.norm_stats = norm_stats
        self.tokenizer = tokenizer
        try:
            self.engine = make_engine(engine, model, num_steps)
        except EngineError as error:
            raise PolicyError(str(error)) from error
        self.engine_seconds = 0.0
        """Of the last inference, what the engine took."""
        self._generator = torch.Generator()
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)

    @classmethod
    def load(
        cls,
        *,
        preset: str | None = None,
        checkpoint: str | Path | None = None,
        norm_stats: str | Path | None = None,
        tokenizer: str | Path | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        num_steps: int = 10,
        seed: int | None = None,
        action_space: str | ActionSpace | None = None,
        base_view: CameraRole = CameraRole.EXTERIOR_1,
        threads: int | None = None,
        engine: str = "auto",
    ) -> Policy:
        """A policy from files.

        Args:
            preset: name of a configuration. A checkpoint that comes with its own goes by that.
            checkpoint: safetensors file, or a directory of one, `package://ki_ros/models/...` for one that ships;
                without it the weights are untrained.
            norm_stats: path of `norm_stats.json`; by default beside the checkpoint (openpi's `assets/*/` too). For
                untrained weights, what ships for them with the preset.
            tokenizer: path of a sentencepiece model; by default beside the checkpoint, then what ships.
            device: torch device.
            dtype: "float32" or "bfloat16", to compute in.
            num_steps, seed, base_view, engine: see the class.
            action_space: for checkpoints that do not name theirs.
            threads: of torch on the CPU, for the whole process; None leaves them. A small model on cores that others
                use too wants 1: threads that wait for each other make it slower by orders of magnitude.

        Raises:
            ValueError: PolicyError or the error of the part that is wrong (ConfigError, CheckpointError,
                NormStatsError, TokenizerError); each names what and how to put it right.
        """
        if preset is None and checkpoint is None:
            raise PolicyError("neither preset nor checkpoint is given; give at least one")
        if dtype not in DTYPES:
            raise PolicyError(f"dtype {dtype!r} is not known; use one of {', '.join(DTYPES)}")
        _require_device(device)
        if threads is not None:
            if threads < 1:
                raise PolicyError(f"threads is {threads}; give a positive integer, or None to leave torch's own")
            torch.set_num_threads(threads)
        checkpoint = None if checkpoint is None else _located(checkpoint)
        directories = _directories(preset, checkpoint)
        config, named = _config(preset, checkpoint)
        if action_space is not None:
            action_space = ActionSpace.parse(action_space)
            if named and action_space is not config.action_space:
                raise PolicyError(
                    f"action_space is {action_space.value!r}, but {checkpoint} was trained in "
                    f"{config.action_space.value!r}; leave action_space out"
                )
            config = replace(config, action_space=action_space)
        # Statistics of other data than the weights were trained on would scale every action wrongly.
        places = directories[:1] if checkpoint is not None else [d / _UNTRAINED for d in directories]
        patterns = (NORM_STATS_FILE, f"assets/*/{NORM_STATS_FILE}")
        stats_file = Path(norm_stats) if norm_stats else _find(places, patterns)
        if stats_file is None:
            raise PolicyError(
                f"no {NORM_STATS_FILE} beside {checkpoint or f'preset {preset}'}; give norm_stats, the file that "
                "belongs to the weights"
            )
        tokenizer_file = Path(tokenizer) if tokenizer else _find(directories, (TOKENIZER_FILE,))
        if tokenizer_file is None:
            raise PolicyError(
                f"no {TOKENIZER_FILE} beside {checkpoint or f'preset {preset}'}; give tokenizer. {PALIGEMMA_SOURCES}"
            )
        stats = NormStats.load(stats_file)
        prompt_tokenizer = PromptTokenizer(tokenizer_file, config.max_token_len)

        if checkpoint is None:
            logger.warning(
                "UNTRAINED WEIGHTS: preset %s without a checkpoint acts at random. Never enable it on a real arm.",
                preset,
            )
            model = _untrained(config, seed or 0, device, DTYPES[dtype])
        else:
            model = load_checkpoint(checkpoint, config, device=device, dtype=DTYPES[dtype])
            logger.info(
                "checkpoint %s: %.1f M parameters", checkpoint, sum(p.numel() for p in model.parameters()) / 1e6
            )
        model.requires_grad_(False)
        return cls(model, stats, prompt_tokenizer, num_steps=num_steps, seed=seed, base_view=base_view, engine=engine)

    @property
    def config(self) -> KIConfig:
        """The model's."""
        return self.model.config

    @property
    def action_space(self) -> ActionSpace:
        """What the first seven values of an action mean."""
        return self.config.action_space

    @property
    def horizon(self) -> int:
        """Actions of a chunk."""
        return self.config.action_horizon

    @property
    def required_views(self) -> tuple[CameraRole, ...]:
        """The cameras without which there is no inference."""
        return self.inputs.required_views

    def require_can_replace(self, other: Policy) -> None:
        """Refuses to take another policy's place in a graph that was started, and perhaps tuned, for that one.

        Raises:
            PolicyError: actions of another meaning, or a camera that the other did without.
        """
        if self.action_space is not other.action_space:
            raise PolicyError(
                f"its action_space is {self.action_space.value!r}, that of the policy in use is "
                f"{other.action_space.value!r}; start the graph with this checkpoint instead"
            )
        if missing := [view.value for view in self.required_views if view not in other.required_views]:
            raise PolicyError(
                f"it needs the camera {missing[0]}, which the policy in use does without; start the graph with this "
                "checkpoint instead"
            )

    def observe(self, views: Mapping[CameraRole, np.ndarray], state: np.ndarray, instruction: str) -> Observation:
        """The model's observation, a batch of one on the CPU; arguments and errors as `infer`."""
        try:
            encoded = self.inputs.encode(views, state, instruction)
        except InputError as error:
            raise PolicyError(str(error)) from error
        return collate_inputs([encoded], self.model.config)

    def infer(
        self,
        views: Mapping[CameraRole, np.ndarray],
        state: np.ndarray,
        instruction: str,
        commitment: Commitment | None = None,
        *,
        trained: bool = False,
    ) -> np.ndarray:
        """A chunk of actions.

        Args:
            views: by camera role, (H, W, 3) uint8 RGB of any size; `required_views` must be there, others are ignored.
            state: (8,), joint positions [rad] and gripper closedness [0 open .. 1 closed].
            instruction: what to do.
            commitment: what the arm will do meanwhile, which the chunk is to agree with (real-time chunking).
            trained: whether to go on from its rows as the model was trained to (arXiv 2512.05964), and not to be guided
                by them (arXiv 2506.07339), which any model can be, at the cost of a backward pass in each step.

        Returns:
            (horizon, 8) float64: seven values in `action_space`, and the gripper's closedness clipped to [0, 1].

        Raises:
            PolicyError: a view that is missing or no RGB image, a state that is not finite, an instruction that is
                empty or too long, an action that is not finite, or more committed rows than the model was trained with.
        """
        return self._act(self.observe(views, state, instruction), None, self._agreement(commitment, trained))

    def reseed(self, seed: int) -> None:
        """Begins the noise of the inferences to come anew, as it begins with that seed."""
        self._generator.manual_seed(seed)

    def warm_up(self) -> float:
        """What is done once, so that the first real inference is not the slow one; the time of one that follows [s].

        The engine is compared with the reference. It draws no noise: a seeded policy gives the same chunks with it and
        without it.

        Raises:
            PolicyError: the engine does not say what the model says.
        """
        self.engine.prepare()
        if self.engine.name != "reference":
            try:
                found = verify(self.engine, self.model)
            except EngineError as error:
                raise PolicyError(str(error)) from error
            logger.info("engine %s: within %.1e of the reference", self.engine.name, found.largest)
        start = time.perf_counter()
        side = self.config.vision.image_size
        views = dict.fromkeys(self.required_views, np.zeros((side, side, 3), dtype=np.uint8))
        state = (self.norm_stats.state.q01 + self.norm_stats.state.q99) / 2
        noise = torch.zeros(1, self.horizon, self.config.action_dim)
        self._act(self.observe(views, state, "warm up"), noise)
        return time.perf_counter() - start

    def _agreement(self, commitment: Commitment | None, trained: bool) -> dict[str, Any]:
        """What the model is told of a commitment."""
        if commitment is None:
            return {}
        config = self.config
        actions = self.norm_stats.actions.normalize(commitment.actions[: config.action_horizon])
        known = torch.as_tensor(actions, dtype=torch.float32)[None]
        if not trained:
            target = torch.nn.functional.pad(known, (0, 0, 0, config.action_horizon - known.shape[1]))
            weights = soft_mask(config.action_horizon, min(commitment.rows, known.shape[1]), known.shape[1])
            return {"guidance": Guidance(target, weights)}
        if commitment.rows > config.committed_rows:
            raise PolicyError(
                f"the arm is committed to {commitment.rows} rows, and the model was trained to go on from up to "
                f"{config.committed_rows} (committed_rows); make inference faster, or let it be guided"
            )
        return {"committed": known[:, : commitment.rows]}

    def _act(
        self, observation: Observation, noise: torch.Tensor | None, agreement: Mapping[str, Any] | None = None
    ) -> np.ndarray:
        if noise is None:
            noise = torch.randn(1, self.horizon, self.config.action_dim, generator=self._generator)
        start = time.perf_counter()
        # Public checkpoints pad actions with zeros; the rig's values come first.
        sampled = self.engine.sample(observation, noise, **(agreement or {}))[0, :, :STATE_DIM].cpu()
        self.engine_seconds = time.perf_counter() - start
        return self.in_rig_units(sampled.numpy())

    def in_rig_units(self, normalised: np.ndarray) -> np.ndarray:
        """Normalised actions (horizon, 8) as `infer` returns them. Raises PolicyError for one that is not finite."""
        actions = self.norm_stats.actions.unnormalize(normalised)
        bad = np.argwhere(~np.isfinite(actions))
        if len(bad):
            row, column = bad[0]
            raise PolicyError(
                f"actions[{row}, {column}] is {actions[row, column]}; {len(bad)} of {actions.size} values are not "
                "finite; check the weights and the dtype"
            )
        actions[:, NUM_JOINTS] = actions[:, NUM_JOINTS].clip(0.0, 1.0)
        return actions


def _located(checkpoint: str | Path) -> Path:
    try:
        return locate(checkpoint)
    except FileNotFoundError as error:
        raise PolicyError(f"checkpoint {checkpoint}: {error}") from error


def _require_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PolicyError(f"device {device!r} cannot be used ({str(error).splitlines()[0]}); try 'cpu'") from error


def _directories(preset: str | None, checkpoint: str | Path | None) -> list[Path]:
    """Where the files that belong to the weights are looked for, in order."""
    directories = []
    if checkpoint is not None:
        directories.append(checkpoint_directory(Path(checkpoint)))
    if preset is not None:
        try:
            directories.append(model_directory(preset))
        except PolicyError:
            logger.debug("no files ship for preset %s", preset)
    return directories


def _config(preset: str | None, checkpoint: str | Path | None) -> tuple[KIConfig, bool]:
    """The configuration, and whether it is the checkpoint's own."""
    fallback = KIConfig.from_preset(preset) if preset is not None else None
    if checkpoint is None:
        assert fallback is not None
        return fallback, False
    return resolve_config(checkpoint, fallback)


def _find(directories: list[Path], patterns: tuple[str, ...]) -> Path | None:
    """The one file that matches, in the first directory and by the first pattern that has any."""
    for directory in directories:
        for pattern in patterns:
            found = sorted(directory.glob(pattern))
            if len(found) > 1:
                raise PolicyError(f"{directory} has several: {', '.join(map(str, found))}; give the path of one")
            if found:
                return found[0]
    return None


def _untrained(config: KIConfig, seed: int, device: str, dtype: torch.dtype) -> KIModel:
    """Initial weights that depend on the seed alone; torch's own random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = KIModel(config)
    return model.cast_(dtype).to(device).eval()
