from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file

from ki_ros.commitment import Commitment
from ki_ros.model.checkpoint import CheckpointError, save_checkpoint
from ki_ros.model.config import KIConfig
from ki_ros.model.model import KIModel
from ki_ros.model.normalize import NormStats
from ki_ros.model.observation import pixel_values
from ki_ros.model.tokenizer import PromptTokenizer
from ki_ros.policy import Policy, PolicyError, model_directory
from ki_ros.rig import RESET_JOINT_POSITIONS, ActionSpace, CameraRole

STATE = np.array([*RESET_JOINT_POSITIONS, 0.3])
SHIPPED = model_directory("ki_tiny")
STATS = json.loads((SHIPPED / "untrained" / "norm_stats.json").read_text())["norm_stats"]


def random_views() -> dict[CameraRole, np.ndarray]:
    generator = np.random.default_rng(0)
    return {role: generator.integers(0, 256, (90, 160, 3), dtype=np.uint8) for role in CameraRole}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def untrained() -> Policy:
    return Policy.load(preset="ki_tiny", seed=0, num_steps=2)


def write_checkpoint(directory: Path, **changes: object) -> Path:
    """A checkpoint whose every weight matters, with all that belongs to it."""
    torch.manual_seed(1)
    config = replace(KIConfig.from_preset("ki_tiny"), **changes)
    model = KIModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    save_checkpoint(model, directory)
    for file in (SHIPPED / "untrained" / "norm_stats.json", SHIPPED / "tokenizer.model"):
        shutil.copy(file, directory / file.name)
    return directory


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> Policy:
    return Policy.load(checkpoint=checkpoint, seed=0, num_steps=2)


def fresh(checkpoint: Path, **options: object) -> Policy:
    return Policy.load(checkpoint=checkpoint, **{"seed": 0, "num_steps": 2} | options)


def test_chunk_is_in_the_rig_s_units(untrained: Policy) -> None:
    chunk = untrained.infer(random_views(), STATE, "put the marker in the pot")
    assert chunk.shape == (15, 8) == (untrained.horizon, 8)
    assert chunk.dtype == np.float64
    assert np.isfinite(chunk).all()
    assert chunk[:, 7].min() >= 0
    assert chunk[:, 7].max() <= 1
    assert untrained.action_space is ActionSpace.JOINT_VELOCITY


def test_chunk_is_the_sampled_actions_unnormalised(checkpoint: Path) -> None:
    policy = fresh(checkpoint)
    chunk = policy.infer(random_views(), STATE, "stop")
    noise = torch.randn(1, 15, 8, generator=torch.Generator().manual_seed(0))
    observation = policy.observe(random_views(), STATE, "stop")
    sampled = policy.model.sample_actions(observation, noise=noise, num_steps=2)[0].double().numpy()
    low, high = np.array(STATS["actions"]["q01"]), np.array(STATS["actions"]["q99"])
    expected = (sampled + 1) / 2 * (high - low + 1e-6) + low
    np.testing.assert_allclose(chunk[:, :7], expected[:, :7], atol=1e-6)
    np.testing.assert_allclose(chunk[:, 7], np.clip(expected[:, 7], 0, 1), atol=1e-6)


def test_observation_is_what_the_model_was_trained_on(policy: Policy) -> None:
    views = {
        role: np.full((224, 224, 3), value, np.uint8) for role, value in zip(CameraRole, (0, 100, 255), strict=True)
    }
    observation = policy.observe(views, STATE, " Pick_up the cube \n")
    assert {slot: pixel_values(image).unique().tolist() for slot, image in observation.images.items()} == {
        "base_0_rgb": [-1.0],
        "left_wrist_0_rgb": [1.0],
    }
    low, high = np.array(STATS["state"]["q01"]), np.array(STATS["state"]["q99"])
    normalized = (STATE - low) / (high - low + 1e-6) * 2 - 1
    bins = " ".join(str(int(np.floor((value + 1) * 128))) for value in normalized)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(SHIPPED / "tokenizer.model"))
    expected = processor.encode(f"Task: Pick up the cube, State: {bins};\nAction: ", add_bos=True)
    assert observation.tokenized_prompt[observation.tokenized_prompt_mask].tolist() == expected
    np.testing.assert_allclose(observation.state.numpy(), normalized[None], atol=1e-6)


def test_each_input_matters_and_the_second_exterior_does_not(checkpoint: Path) -> None:
    def chunk(views: dict[CameraRole, np.ndarray], state: np.ndarray = STATE, instruction: str = "stop") -> np.ndarray:
        return fresh(checkpoint).infer(views, state, instruction)

    views = random_views()
    expected = chunk(views)
    assert np.array_equal(chunk(views), expected)
    without = {role: view for role, view in views.items() if role is not CameraRole.EXTERIOR_2}
    assert np.array_equal(chunk(without), expected)
    for role in (CameraRole.EXTERIOR_1, CameraRole.WRIST):
        assert not np.array_equal(chunk(views | {role: 255 - views[role]}), expected)
    assert not np.array_equal(chunk(views, STATE + 0.1), expected)
    assert not np.array_equal(chunk(views, instruction="go"), expected)


def test_the_second_exterior_can_be_the_base_view(checkpoint: Path) -> None:
    views = random_views()
    other = fresh(checkpoint, base_view=CameraRole.EXTERIOR_2)
    assert other.required_views == (CameraRole.EXTERIOR_2, CameraRole.WRIST)
    swapped = {CameraRole.EXTERIOR_1: views[CameraRole.EXTERIOR_2], CameraRole.WRIST: views[CameraRole.WRIST]}
    assert np.array_equal(other.infer(views, STATE, "stop"), fresh(checkpoint).infer(swapped, STATE, "stop"))


def test_warm_up_leaves_no_trace(checkpoint: Path) -> None:
    warm, cold = fresh(checkpoint), fresh(checkpoint)
    assert warm.warm_up() > 0
    assert np.array_equal(warm.infer(random_views(), STATE, "stop"), cold.infer(random_views(), STATE, "stop"))
    assert not np.array_equal(warm.infer(random_views(), STATE, "stop"), warm.infer(random_views(), STATE, "stop"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"views": {CameraRole.WRIST: np.zeros((9, 9, 3), np.uint8)}},
            r"view 'exterior_1' is missing \(given: wrist\)",
        ),
        ({"views": {}}, r"view 'exterior_1' is missing \(given: none\)"),
        ({"views": dict.fromkeys(CameraRole, np.zeros((9, 9), np.uint8))}, r"view 'exterior_1': .*\(9, 9\)"),
        ({"views": dict.fromkeys(CameraRole, np.zeros((9, 9, 3)))}, "view 'exterior_1': .*float64"),
        ({"state": np.zeros(7)}, r"state has shape \(7,\)"),
        ({"state": np.where(np.arange(8) == 3, np.nan, 0.0)}, r"state\[3\] is nan"),
        ({"state": np.where(np.arange(8) == 7, np.inf, 0.0)}, r"state\[7\] is inf"),
        ({"instruction": ""}, "instruction is ''"),
        ({"instruction": " _\n"}, "instruction is"),
        ({"instruction": "999 " * 100}, r"instruction '999 .*tokens .* 200"),
    ],
)
def test_bad_input_is_named(policy: Policy, change: dict, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        policy.infer(**{"views": random_views(), "state": STATE, "instruction": "stop"} | change)


def test_action_that_is_not_finite_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "c")
    weights = load_file(tmp_path / "c" / "model.safetensors")
    weights["action_out_proj.bias"][2] = float("nan")
    save_file(weights, tmp_path / "c" / "model.safetensors")
    with pytest.raises(PolicyError, match=r"actions\[0, 2\] is nan; 15 of 120"):
        fresh(tmp_path / "c", num_steps=1).infer(random_views(), STATE, "stop")


@pytest.fixture(scope="module")
def agreeable() -> Policy:
    """A policy whose expert's weights are all random, and which may be told of up to four rows."""
    torch.manual_seed(3)
    config = replace(KIConfig.from_preset("ki_tiny"), committed_rows=4)
    model = KIModel(config).eval()
    for parameter in model.expert_parameters().values():
        torch.nn.init.normal_(parameter, std=0.05)
    stats = NormStats.load(SHIPPED / "untrained" / "norm_stats.json")
    return Policy(model, stats, PromptTokenizer(SHIPPED / "tokenizer.model", config.max_token_len), seed=0)


@pytest.mark.parametrize("trained", [False, True])
def test_a_chunk_agrees_with_what_the_arm_is_committed_to(agreeable: Policy, trained: bool) -> None:
    views, task = random_views(), "put the marker in the pot"
    agreeable.reseed(1)
    before = agreeable.infer(views, STATE, task)
    left = Commitment(before[5:], 3)
    agreeable.reseed(2)
    free = agreeable.infer(views, STATE, task)
    agreeable.reseed(2)
    drawn = agreeable.infer(views, STATE, task, left, trained=trained)
    scale = agreeable.norm_stats.actions.q99 - agreeable.norm_stats.actions.q01

    def apart(chunk: np.ndarray) -> float:
        return float(np.abs((chunk[:3] - left.actions[:3]) / scale).mean())

    assert apart(drawn) < (1e-6 if trained else 0.1 * apart(free))
    assert drawn.shape == free.shape


def test_no_more_rows_than_it_was_trained_with(agreeable: Policy) -> None:
    left = Commitment(np.zeros((10, 8)), 5)
    with pytest.raises(PolicyError, match=r"committed to 5 rows.*up to 4 \(committed_rows\)"):
        agreeable.infer(random_views(), STATE, "stop", left, trained=True)
    agreeable.infer(random_views(), STATE, "stop", left)


def test_untrained_weights_are_announced_and_depend_on_the_seed(caplog: pytest.LogCaptureFixture) -> None:
    random_state = torch.get_rng_state()
    with caplog.at_level(logging.WARNING):
        chunks = [
            Policy.load(preset="ki_tiny", seed=seed, num_steps=1).infer(random_views(), STATE, "stop")
            for seed in (3, 3, 4)
        ]
    assert "UNTRAINED" in caplog.text
    assert np.array_equal(chunks[0], chunks[1])
    assert not np.array_equal(chunks[0], chunks[2])
    assert torch.equal(torch.get_rng_state(), random_state)


def test_reseeding_begins_the_noise_anew(checkpoint: Path) -> None:
    policy = fresh(checkpoint)
    chunks = []
    for seed in (5, None, 5, 6):
        if seed is not None:
            policy.reseed(seed)
        chunks.append(policy.infer(random_views(), STATE, "stop"))
    assert np.array_equal(chunks[0], chunks[2])
    assert not np.array_equal(chunks[0], chunks[1])
    assert not np.array_equal(chunks[0], chunks[3])


def test_checkpoint_names_its_action_space(tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path, action_space=ActionSpace.JOINT_POSITION)
    assert fresh(directory).action_space is ActionSpace.JOINT_POSITION
    assert fresh(directory, preset="pi05_droid_ki").config.language == KIConfig.from_preset("ki_tiny").language
    with pytest.raises(PolicyError, match="action_space is 'joint_velocity'"):
        fresh(directory, action_space="joint_velocity")


@pytest.mark.parametrize("name", ["action_horizon", "chunk_size"])
def test_public_checkpoint_has_the_horizon_that_it_was_trained_with(tmp_path: Path, name: str) -> None:
    """As its `config.json` says, whatever the preset has: among more rows the first would be others."""
    own = fresh(write_checkpoint(tmp_path / "own", action_horizon=9))
    directory = write_checkpoint(tmp_path / "public", action_horizon=9)
    (directory / "config.json").write_text(json.dumps({name: 9, "precision": "float32"}))
    policy = fresh(directory, preset="ki_tiny")
    assert policy.horizon == 9
    given = random_views(), STATE, "stop"
    np.testing.assert_array_equal(policy.infer(*given), own.infer(*given))
    (directory / "config.json").write_text(json.dumps({name: 0}))
    with pytest.raises(CheckpointError, match=f"{name} is 0; give a positive integer"):
        fresh(directory, preset="ki_tiny")


def test_public_checkpoint_acts_in_its_first_eight_dimensions(tmp_path: Path) -> None:
    """A public checkpoint has no configuration of ours, 32 action dimensions, and its statistics under assets/."""
    directory = write_checkpoint(tmp_path, action_dim=32)
    (directory / "config.json").write_text('{"type": "pi05"}')
    assets = directory / "assets" / "droid"
    assets.mkdir(parents=True)
    stats = {name: {key: [*value, *[0.0] * 24] for key, value in entry.items()} for name, entry in STATS.items()}
    stats["actions"]["q99"][0] = 9.0
    (assets / "norm_stats.json").write_text(json.dumps({"norm_stats": stats}))
    (directory / "norm_stats.json").unlink()
    policy = fresh(directory, preset="ki_tiny", action_space="joint_position")
    assert policy.config.action_dim == 32
    assert policy.norm_stats.actions.q99[0] == 9.0
    assert policy.action_space is ActionSpace.JOINT_POSITION
    assert policy.infer(random_views(), STATE, "stop").shape == (15, 8)
    with pytest.raises(CheckpointError, match="from_preset"):
        fresh(directory)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "neither preset nor checkpoint"),
        ({"preset": "pi06"}, r"'pi06'.*ki_tiny"),
        ({"preset": "ki_tiny", "dtype": "int4"}, r"'int4'.*bfloat16"),
        ({"preset": "ki_tiny", "device": "cuda:99"}, "device 'cuda:99'"),
        ({"preset": "ki_tiny", "device": "toaster"}, "device 'toaster'"),
        ({"preset": "ki_tiny", "num_steps": 0}, "num_steps is 0"),
        ({"preset": "ki_tiny", "threads": 0}, "threads is 0"),
        ({"preset": "ki_tiny", "action_space": "torque"}, "'torque'.*joint_velocity"),
        ({"preset": "ki_tiny", "checkpoint": "/nowhere/at/all"}, "/nowhere/at/all does not exist"),
        ({"preset": "ki_tiny", "tokenizer": "/nowhere"}, "tokenizer /nowhere"),
        ({"preset": "ki_tiny", "norm_stats": "/nowhere"}, "/nowhere: cannot be read"),
        ({"preset": "ki_tiny", "base_view": CameraRole.WRIST}, "base_view"),
        ({"preset": "pi05_droid_ki"}, r"norm_stats\.json"),
        (
            {"preset": "pi05_droid_ki", "norm_stats": SHIPPED / "untrained" / "norm_stats.json"},
            "gs://big_vision/paligemma_tokenizer",
        ),
    ],
)
def test_what_cannot_be_loaded_is_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Policy.load(**options)


def test_configuration_beside_the_weights_must_be_right(checkpoint: Path, tmp_path: Path) -> None:
    """One that means to be ours is never passed over for the preset's."""
    shutil.copytree(checkpoint, tmp_path / "c")
    values = json.loads((checkpoint / "config.json").read_text())
    for text, message in ((json.dumps(values | {"horizon": 9}), "horizon is 9"), ("{", "JSON")):
        (tmp_path / "c" / "config.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            fresh(tmp_path / "c", preset="ki_tiny")


def test_tokenizer_must_fit_the_vocabulary(checkpoint: Path) -> None:
    policy = fresh(checkpoint)
    config = policy.config
    small = KIModel(replace(config, language=replace(config.language, vocab_size=1023)))
    with pytest.raises(PolicyError, match="1024 pieces, the model only 1023"):
        Policy(small, policy.norm_stats, policy.tokenizer)


def test_shipped_files_are_found_in_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "share" / "ki_ros" / "models" / "lab"
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"/other:{tmp_path}")
    with pytest.raises(PolicyError, match=str(installed)):
        model_directory("lab")
    installed.mkdir(parents=True)
    assert model_directory("lab") == installed
