"""The names that openpi and LeRobot give to the sizes of pi0.5's parts."""

from __future__ import annotations

from ki_ros.model.config import PRESETS, KIConfig

OTHER = "ki_ros_custom"
"""Written for sizes that they have no name for: their loaders refuse it, and mistake the model for no other."""


def is_standard(config: KIConfig) -> bool:
    """Whether openpi and LeRobot can build the model: SigLIP So400m/14, gemma_2b and a gemma_300m expert."""
    preset = PRESETS["pi05_droid_ki"]
    return (config.vision, config.language, config.expert) == (preset.vision, preset.language, preset.expert)


def variants(config: KIConfig) -> dict[str, str]:
    """The fields `paligemma_variant` and `action_expert_variant` of both."""
    known = is_standard(config)
    return {
        "paligemma_variant": "gemma_2b" if known else OTHER,
        "action_expert_variant": "gemma_300m" if known else OTHER,
    }
