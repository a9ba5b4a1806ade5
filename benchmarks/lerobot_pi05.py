"""Sampling by LeRobot's own pi0.5 (`lerobot.policies.pi05`), in the size of the preset `pi05_droid_ki`.

It is another side of `inference.py`, and runs where LeRobot is installed together with the version of transformers that
it asks for. Its inputs are what LeRobot's policy gives the model: three views, of which an absent one is black and
masked, and a prompt padded to its full length. In bfloat16 LeRobot keeps the vision tower, its projection, the norms
and the layers around the expert in float32; their products are made in TF32, as LeRobot's evaluation script and its
switch for `torch.compile` set it.
"""

from __future__ import annotations

from importlib import import_module, metadata

import torch
import torch.nn.functional as F
from openpi_like import three_views
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from torch import Tensor

from ki_ros.model.config import KIConfig
from ki_ros.model.model import KIModel
from ki_ros.model.observation import Observation

VERSIONS = SpecifierSet(">=0.6.1,<0.7")
"""Of LeRobot, whose model class has no promised interface."""
LANGUAGE, EXPERT = "gemma_2b", "gemma_300m"
PRECISION = "high"
"""Of products of float32 matrices, as `torch.set_float32_matmul_precision` has it: TF32 on a GPU."""
UNUSED = {"paligemma_with_expert.paligemma.lm_head.weight", "paligemma_with_expert.gemma_expert.lm_head.weight"}
"""Parameters of LeRobot's model that sampling does not read."""


def available() -> str | None:
    """Why this side cannot be used, or None if it can."""
    try:
        version = metadata.version("lerobot")
    except metadata.PackageNotFoundError:
        return "LeRobot is not installed"
    if version not in VERSIONS:
        return f"LeRobot is {version}; this benchmark needs {VERSIONS}"
    for line in metadata.requires("lerobot") or []:
        wanted = Requirement(line)
        if wanted.name != "transformers":
            continue
        found = metadata.version(wanted.name)
        if found not in wanted.specifier:
            return f"transformers is {found}; LeRobot {version} needs {wanted.specifier}"
    try:
        import_module("lerobot.policies.pi05.modeling_pi05")
    except ImportError as error:
        return f"LeRobot {version} cannot be imported: {error}"
    return None


class LerobotPi05:
    """See the module's docstring; the interface is that of the engines.

    Args:
        config: of LeRobot's size: gemma_2b, gemma_300m and SigLIP So400m/14.
        num_steps: evaluations of the expert.
        device: where the model is made and runs.
        dtype: float32 or bfloat16.
        compiled: whether LeRobot compiles the sampling, in its default mode; the first call does it.

    Raises:
        ValueError: the language model or the expert is of another size.
    """

    name = "lerobot"

    def __init__(
        self, config: KIConfig, num_steps: int, device: torch.device, dtype: torch.dtype, compiled: bool
    ) -> None:
        modeling = import_module("lerobot.policies.pi05.modeling_pi05")
        for part, variant in ((config.language, LANGUAGE), (config.expert, EXPERT)):
            size = modeling.get_gemma_config(variant)
            if (part.width, part.mlp) != (size.width, size.mlp_dim):
                raise ValueError(f"width {part.width} with an MLP of {part.mlp}; give the size of {variant}")
        settings = modeling.PI05Config(
            paligemma_variant=LANGUAGE,
            action_expert_variant=EXPERT,
            dtype={torch.float32: "float32", torch.bfloat16: "bfloat16"}[dtype],
            chunk_size=config.action_horizon,
            n_action_steps=config.action_horizon,
            max_action_dim=config.action_dim,
            num_inference_steps=num_steps,
            image_resolution=(config.vision.image_size, config.vision.image_size),
            tokenizer_max_length=config.max_token_len,
            compile_model=compiled,
            device=device.type,
        )
        precision = torch.get_float32_matmul_precision()
        # In float32, of which LeRobot casts a part: not all of it is to be in `dtype`.
        with torch.device(device):
            self._model = modeling.PI05Pytorch(settings).eval().requires_grad_(False)
        # LeRobot's switch for compilation sets it for the whole process.
        torch.set_float32_matmul_precision(precision)
        self._prompt_length = config.max_token_len

    def load(self, model: KIModel) -> None:
        """Takes the weights of a model, whose parameters have the same names.

        Raises:
            RuntimeError: a parameter that sampling reads is missing, is of another shape, or has no counterpart.
        """
        missing, unexpected = self._model.load_state_dict(model.state_dict(), strict=False)
        if wrong := sorted({*missing} - UNUSED) + unexpected:
            raise RuntimeError(f"{wrong[0]} is in only one of the two models ({len(wrong)} such parameters)")

    @torch.no_grad()
    def sample(self, observation: Observation, noise: Tensor) -> Tensor:
        """Actions (1, H, D)."""
        tokens, words = observation.tokenized_prompt, observation.tokenized_prompt_mask
        padding = (0, self._prompt_length - tokens.shape[1])
        # A tensor for each slot: compiled code is made anew where two inputs are one tensor.
        images, present = zip(*three_views(observation), strict=True)
        images = [image.float() for image in images]
        masks = [torch.full((1,), there, device=tokens.device) for there in present]
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(PRECISION)
        try:
            return self._model.sample_actions(
                images, masks, F.pad(tokens, padding), F.pad(words, padding), noise=noise.float()
            )
        finally:
            torch.set_float32_matmul_precision(precision)
