from __future__ import annotations

import dataclasses
import json

import pytest

from ki_ros.model.config import ConfigError, KIConfig
from ki_ros.rig import ActionSpace


def test_presets_are_droid_policies() -> None:
    for name in ("pi05_droid_ki", "ki_tiny"):
        config = KIConfig.from_preset(name)
        assert (config.action_dim, config.action_horizon, config.max_token_len) == (8, 15, 200)
        assert config.vision.image_size == 224
        assert config.knowledge_insulation
        assert config.knowledge_insulation_lambda == 0.5
        assert config.action_space is ActionSpace.JOINT_VELOCITY


def test_full_preset_has_pi05_sizes() -> None:
    config = KIConfig.from_preset("pi05_droid_ki")
    assert dataclasses.astuple(config.vision) == (1152, 27, 16, 4304, 224, 14)
    assert dataclasses.astuple(config.language) == (2048, 16384, 18, 8, 1, 256, 257152)
    assert dataclasses.astuple(config.expert) == (1024, 4096)
    assert config.vision.tokens == 256


def test_unknown_preset_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'pi0'.*pi05_droid_ki.*ki_tiny"):
        KIConfig.from_preset("pi0")


def test_dictionary_round_trip(small_config: KIConfig) -> None:
    values = json.loads(json.dumps(small_config.to_dict()))
    assert KIConfig.from_dict(values) == small_config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("vision.depths", 3, r"vision\.depths is 3.*no such field"),
        ("action_horizons", 3, r"action_horizons is 3.*no such field"),
        ("action_dim", "8", r"action_dim is '8' \(str\).*int"),
        ("action_dim", True, r"action_dim is True \(bool\)"),
        ("action_dim", 0, r"action_dim is 0.*positive"),
        ("language.depth", 2.0, r"language\.depth is 2\.0 \(float\)"),
        ("language.heads", 3, r"language\.heads is 3.*kv_heads 2"),
        ("language.head_dim", 7, r"language\.head_dim is 7.*even"),
        ("vision.image_size", 30, r"vision\.image_size is 30.*patch_size 14"),
        ("vision.heads", 3, r"vision\.width is 16.*heads 3"),
        ("expert.width", 21, r"expert\.width is 21.*even"),
        ("expert", 4, r"expert is 4.*mapping"),
        ("action_space", "torque", r"'torque'.*joint_velocity"),
        ("knowledge_insulation", 1, r"knowledge_insulation is 1 \(int\).*bool"),
        ("knowledge_insulation_lambda", float("nan"), r"knowledge_insulation_lambda is nan"),
    ],
)
def test_bad_value_is_named(small_config: KIConfig, path: str, value: object, message: str) -> None:
    values = small_config.to_dict()
    *parents, leaf = path.split(".")
    target = values
    for parent in parents:
        target = target[parent]
    target[leaf] = value
    with pytest.raises(ConfigError, match=message):
        KIConfig.from_dict(values)


def test_missing_field_is_named(small_config: KIConfig) -> None:
    values = small_config.to_dict()
    del values["language"]["mlp"]
    with pytest.raises(ConfigError, match=r"language\.mlp is missing"):
        KIConfig.from_dict(values)


def test_unreadable_file_is_named(tmp_path) -> None:
    file = tmp_path / "config.json"
    with pytest.raises(ConfigError, match=r"config\.json"):
        KIConfig.from_json(file)
    file.write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json.*JSON"):
        KIConfig.from_json(file)


def test_whole_number_serves_as_a_float(small_config: KIConfig) -> None:
    config = KIConfig.from_dict(small_config.to_dict() | {"knowledge_insulation_lambda": 1})
    assert config.knowledge_insulation_lambda == 1.0
