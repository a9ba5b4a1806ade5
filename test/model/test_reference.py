from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ki_ros.model.checkpoint import load_checkpoint
from ki_ros.model.config import KIConfig
from ki_ros.model.reference import compare, main, recorded_observation


@pytest.fixture(params=["A", "B"])
def reference(test_data: Path, request: pytest.FixtureRequest) -> Path:
    return test_data / "pi05_reference" / request.param


def test_matches_the_public_implementation(reference: Path) -> None:
    differences = compare(reference)
    loss = differences.pop("flow_loss")
    assert loss <= 1e-5 + 1e-5 * load_file(reference / "vectors.safetensors")["flow_loss"].max()
    assert {"v_t_cache", "v_t_joint", "sampled_actions", "sampled_actions_1steps", "time_emb"} <= set(differences)
    assert {name: value for name, value in differences.items() if value > 1e-5} == {}


def test_the_flow_loss_to_minimise_is_the_mean_of_the_recorded_one(reference: Path) -> None:
    """Where its padding is learnt: over all dimensions of an action. Set B has 32, as public checkpoints have."""
    config = dataclasses.replace(KIConfig.from_json(reference / "config.json"), padding_loss=True)
    model = load_checkpoint(reference / "weights.safetensors", config)
    record = load_file(reference / "vectors.safetensors")
    batch = len(record["actions"])
    observation = dataclasses.replace(
        recorded_observation(record),
        fast_action_tokens=torch.zeros(batch, 1, dtype=torch.int64),
        fast_action_mask=torch.zeros(batch, 1, dtype=torch.bool),
    )
    found = model.compute_loss(observation, record["actions"], noise=record["noise"], time=record["time"]).flow_loss
    assert found.item() == pytest.approx(record["flow_loss"].mean().item(), rel=1e-5)


def test_command_reports(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(reference), "--json", str(tmp_path / "report.json")]) == 0
    assert "v_t_joint" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["passed"]
    assert report["differences"]["v_t_cache"] == report["v_t_cache"] <= 1e-5


def test_command_fails_on_another_network(reference: Path, tmp_path: Path) -> None:
    for file in ("config.json", "vectors.safetensors"):
        shutil.copy(reference / file, tmp_path / file)
    weights = load_file(reference / "weights.safetensors")
    weights["action_out_proj.bias"] += 1e-4
    save_file(weights, tmp_path / "weights.safetensors")
    assert main([str(tmp_path)]) == 1


def test_command_names_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "config.json" in capsys.readouterr().err


def test_command_names_a_missing_vector(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in ("config.json", "weights.safetensors"):
        shutil.copy(reference / file, tmp_path / file)
    vectors = load_file(reference / "vectors.safetensors")
    del vectors["v_t_joint"]
    save_file(vectors, tmp_path / "vectors.safetensors")
    assert main([str(tmp_path)]) == 2
    assert "v_t_joint" in capsys.readouterr().err
