"""Sweeps: which runs a file means, what is refused, what a sweep survives, and what it reports."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ki_ros.commands.locks import InUseError
from ki_ros.commands.sweep import sweep as command
from ki_ros.training.config import load as load_training
from ki_ros.training.sweep import SweepError, config_text, load, require_same
from ki_ros.training.sweep_report import draw, markdown, summarise, summary, table

LAMBDA = "model.changes.knowledge_insulation_lambda"
INSULATION = "model.changes.knowledge_insulation"
BASE = {
    "model": {
        "preset": "ki_tiny",
        "changes": {
            "vision": {"width": 32, "depth": 1, "heads": 2, "mlp": 64, "image_size": 32, "patch_size": 16},
            "language": {"width": 32, "mlp": 64, "depth": 1, "heads": 2, "kv_heads": 1, "head_dim": 16},
            "expert": {"width": 32, "mlp": 64},
        },
    },
    "data": {"kind": "pointing", "train": 64, "held_out": 8, "side": 16},
    "augment": {"enabled": False},
    "fast_vocab_size": 700,
    "steps": 40,
    "batch_size": 2,
    "precision": "float32",
    "device": "cpu",
    "optimizer": {"learning_rate": 1e-3, "warmup_steps": 2},
    "evaluation": {"every": 20, "samples": 4, "num_steps": 2},
    "save_every": 10,
    "log_every": 1,
    "workers": 0,
    "tensorboard": False,
}


def write(path: Path, **fields) -> Path:
    path.write_text(yaml.safe_dump({"output": str(path.parent / "out"), "base": BASE, **fields}, sort_keys=False))
    return path


def names(path: Path) -> list[str]:
    return [run.name for run in load(path).runs]


def test_a_grid_is_every_combination_with_every_seed(tmp_path) -> None:
    plan = load(
        write(
            tmp_path / "s.yaml",
            grid={LAMBDA: [0, 0.5], INSULATION: [True, False]},
            runs=[{"name": "plain", "set": {"flow_samples": 4}}],
            seeds=[0, 7],
        )
    )
    expected = [
        f"lambda={weight},insulation={on},seed={seed}"
        for weight in ("0", "0.5")
        for on in ("true", "false")
        for seed in (0, 7)
    ]
    assert [run.name for run in plan.runs] == [*expected, "plain,seed=0", "plain,seed=7"]
    for run in plan.runs:
        assert run.directory == tmp_path / "out" / run.name
        assert f"seed={run.config.seed}" in run.name
        if run.point != "plain":
            assert run.model.knowledge_insulation_lambda == float(run.name.split(",")[0].split("=")[1])
            assert run.model.knowledge_insulation == ("insulation=true" in run.name)
            assert run.settings == {
                "lambda": run.model.knowledge_insulation_lambda,
                "insulation": run.model.knowledge_insulation,
            }
    # Off the grid, an axis has the preset's value.
    assert plan.runs[-1].settings == {"lambda": 0.5, "insulation": True}
    assert plan.runs[-1].config.flow_samples == 4


def test_a_name_depends_on_the_settings_alone(tmp_path) -> None:
    few = load(write(tmp_path / "few.yaml", grid={LAMBDA: [0.5], "flow_samples": [2]}, seeds=[1]))
    more = load(write(tmp_path / "more.yaml", grid={LAMBDA: [0, 0.5], "flow_samples": [8, 2]}, seeds=[0, 1]))
    (run,) = few.runs
    assert run.name == "lambda=0.5,flow_samples=2,seed=1"
    (same,) = (other for other in more.runs if other.name == run.name)
    assert same.config == run.config


@pytest.mark.parametrize(
    "grid",
    [
        {"model.changes.expert": [{"width": 32, "mlp": 64}, {"width": 64, "mlp": 64}]},
        {"freeze": [[], ["vision"], ["vision", "projector"]]},
        {"ema_decay": [None, 0.9, 1.0e-5], "optimizer.learning_rate": ["1e-4", 3.0e-4]},
        {"optimizer.beta1": [0.8, 0.9], "optimizer.beta2": [0.8000000001, 0.8]},
        {"model.changes.language.width": [32, 64], "model.changes.expert.width": [32, 64]},
        {"data.held_out": list(range(1, 9)), "data.side": [16, 32]},
    ],
)
def test_names_are_unique_and_fit_for_files(tmp_path, grid) -> None:
    found = names(write(tmp_path / "s.yaml", grid=grid, seeds=[0]))
    assert len(set(found)) == len(found) == math.prod(map(len, grid.values()))
    for name in found:
        assert len(name) <= 128
        assert not set(name) & set("/\\:*?\"<>| \n'[]{}")
        (tmp_path / name).mkdir()


def test_what_is_set_for_all_runs_is_under_the_grid_and_over_the_base(tmp_path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    path = write(tmp_path / "s.yaml", base="base.yaml", set={"steps": 50, "batch_size": 4}, grid={"flow_samples": [3]})
    (run,) = load(path, ["steps=70"], tmp_path / "elsewhere").runs
    assert (run.config.steps, run.config.batch_size, run.config.flow_samples) == (70, 4, 3)
    assert run.directory == tmp_path / "elsewhere" / "flow_samples=3"
    # What a run's process reads is what was checked here.
    file = tmp_path / "written.yaml"
    file.write_text(config_text(run))
    assert load_training(file) == run.config


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"grids": {}}, ["grids is {}", "no such field"]),
        ({"output": 3}, ["output is 3", "give the directory"]),
        ({"base": 3}, ["base is 3", "give the path"]),
        ({"base": "nowhere.yaml"}, ["nowhere.yaml", "cannot be read"]),
        ({"grid": {"steps": 50}}, ["grid.steps is 50", "give a list"]),
        ({"grid": {"steps": []}}, ["grid.steps is []", "give a list"]),
        ({"grid": {"output": ["a"]}}, ["grid.output", "leave it out"]),
        ({"set": {"steps": 30}, "grid": {"steps": [50]}}, ["set has steps", "grid"]),
        ({"set": {"seed": 1}, "seeds": [0]}, ["set has seed", "seeds"]),
        ({"grid": {"seed": [0]}, "seeds": [0]}, ["grid.seed is [0]", "give one"]),
        ({"seeds": [0, -1]}, ["seeds is [0, -1]", "0 or more"]),
        ({"seeds": [0, 0]}, ["run seed=0 is there twice"]),
        ({"runs": [{"name": "a b"}]}, ["runs[0].name is 'a b'", "give letters"]),
        ({"runs": [{"name": "..", "set": {}}]}, ["runs[0].name is '..'"]),
        ({"runs": [{"name": "a", "sets": {}}]}, ["runs[0] is", "name and set"]),
        ({"runs": [{"name": "a"}, {"name": "b"}]}, ["run b has the same configuration as run a"]),
        ({"grid": {INSULATION: [True, False]}, "runs": [{"name": "a"}]}, ["run a has the same", "insulation=true"]),
        ({"runs": [{"name": "a"}, {"name": "z", "set": {"stepz": 1}}]}, ["run z", "stepz is 1", "no such field"]),
        ({"grid": {"flow_samples": [1, 0]}}, ["run flow_samples=0", "flow_samples is 0"]),
        ({"grid": {"model.changes.lamda": [1]}}, ["run lamda=1", "lamda"]),
    ],
)
def test_a_wrong_field_is_named_with_its_fix(tmp_path, fields, words) -> None:
    with pytest.raises(SweepError) as caught:
        load(write(tmp_path / "s.yaml", **fields))
    for word in words:
        assert word in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


def test_an_override_of_an_axis_is_refused(tmp_path) -> None:
    with pytest.raises(SweepError, match="set has flow_samples"):
        load(write(tmp_path / "s.yaml", grid={"flow_samples": [1, 2]}), ["flow_samples=3"])


def test_runs_of_another_configuration_are_not_taken_over(tmp_path) -> None:
    grid = {"flow_samples": [1, 2]}
    before = load(write(tmp_path / "s.yaml", grid=grid))
    before.runs[1].directory.mkdir(parents=True)
    (before.runs[1].directory / "config.yaml").write_text(config_text(before.runs[1]))
    require_same(load(write(tmp_path / "s.yaml", grid={"flow_samples": [1, 2, 4]})))
    path = write(tmp_path / "s.yaml", grid=grid, set={"optimizer.learning_rate": 0.25})
    with pytest.raises(SweepError) as caught:
        command(config=path, set=(), output=None, jobs=1, json=None)
    for word in ("run flow_samples=2", "optimizer.learning_rate 0.001, now 0.25", "another output"):
        assert word in str(caught.value)
    assert not before.runs[0].directory.exists()
    require_same(load(path, output=tmp_path / "other"))


FIGURES = {
    "lambda=0,insulation=true,seed=0": (1.0, 3.0, 0.5, 60.0),
    "lambda=0,insulation=true,seed=1": (2.0, 5.0, 0.5, 120.0),
    "lambda=1,insulation=true,seed=0": (4.0, 1.0, 0.25, 60.0),
}
"""Flow loss, FAST loss, following and seconds of runs. Of two values a and b the deviation is |a - b| / sqrt(2)."""


@pytest.fixture
def reported(tmp_path):
    plan = load(write(tmp_path / "s.yaml", grid={LAMBDA: [0, 1], INSULATION: [True]}, seeds=[0, 1]))
    results = {}
    for name, (flow, fast, following, seconds) in FIGURES.items():
        evaluation = {"flow_loss": flow, "fast_loss": fast, "following": following, "action_error": None}
        results[name] = {"steps": 40, "seconds": seconds, "revision": "abc", "evaluation": evaluation}
        (tmp_path / "out" / name).mkdir(parents=True)
        lines = [
            {"step": 20, "kind": "eval", "flow_loss": 10.0, "following": 0.5},
            {"step": 40, "kind": "eval", **evaluation},
        ]
        (tmp_path / "out" / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return plan, results


def test_the_table_has_means_and_deviations_over_seeds(reported) -> None:
    plan, results = reported
    header, rows = table(plan, summarise(plan, results))
    assert header == ["lambda", "insulation", "n", "flow loss", "FAST loss", "action error", "following [%]", "minutes"]
    assert rows == [
        ["0", "on", "2", "1.5000 ± 0.7071", "4.0000 ± 1.4142", "nan ± nan", "50.0 ± 0.0", "1.5"],
        ["1", "on", "1", "4.0000", "1.0000", "nan", "25.0", "1.0"],
    ]
    text = markdown(plan, results, "ki-ros sweep s.yaml --set steps=100")
    assert "`ki-ros sweep s.yaml --set steps=100`" in text
    assert "Runs: 3 of 4. Code: abc. Steps: 40; " in text
    assert "pointing (train 64, held_out 8, side 16)" in text
    assert "seeds: 0, 1." in text
    assert "| 0 | on | 2 | 1.5000 ± 0.7071 |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_the_summary_is_valid_json_of_all_runs(reported) -> None:
    plan, results = reported
    states = {run.name: "finished" if run.name in results else "failed" for run in plan.runs}
    values = json.loads(json.dumps(summary(plan, results, states), allow_nan=False))
    assert [run["state"] for run in values["runs"]] == ["finished"] * 3 + ["failed"]
    assert values["runs"][1]["settings"] == {"lambda": 0.0, "insulation": True}
    assert [run["seed"] for run in values["runs"]] == [0, 1, 0, 1]
    first, second = values["points"]
    assert first["mean"]["fast_loss"] == 4.0
    assert first["standard_deviation"]["fast_loss"] == pytest.approx(2**0.5)
    assert first["mean"]["action_error"] is None
    assert (second["n"], second["standard_deviation"]["flow_loss"]) == (1, None)


def test_the_picture_is_drawn_of_incomplete_sweeps_too(reported, tmp_path) -> None:
    plan, results = reported
    draw(plan, summarise(plan, results), tmp_path / "sweep.png")
    picture = Image.open(tmp_path / "sweep.png").convert("L")
    assert picture.width > 1000
    assert picture.getextrema()[0] < 64


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def checkpoint_steps(directory: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in directory.glob("checkpoints/step_*"))


def state_of_files(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*")}


def steps_of(directory: Path) -> list[int]:
    lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["kind"] == "train"]


def test_a_killed_sweep_goes_on_where_it_was(tmp_path, monkeypatch, capsys) -> None:
    """Real trainings: the first is finished and the second under way when the sweep is killed; the third must fail."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    broken = {"name": "broken", "set": {"fast_max_tokens": 1}}
    path = write(tmp_path / "s.yaml", grid={LAMBDA: [0, 1]}, runs=[broken])
    first, second = (tmp_path / "out" / f"lambda={weight}" for weight in (0, 1))
    code = (
        "import sys; from pathlib import Path; from ki_ros.commands.sweep import sweep\n"
        "sweep(config=Path(sys.argv[1]), set=(), output=None, jobs=1, json=None)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: checkpoint_steps(second) or process.poll() is not None)
        finally:
            process.kill()
    assert not (second / "result.json").exists()
    untouched = state_of_files(first)
    assert first / "result.json" in untouched

    capsys.readouterr()
    assert command(config=path, set=(), output=None, jobs=2, json=tmp_path / "figures.json") == 1
    shown = capsys.readouterr().out
    assert state_of_files(first) == untouched
    assert "resuming at step" in (second / "log.txt").read_text()
    for directory in (first, second):
        assert steps_of(directory) == list(range(1, 41))
    assert "failed: broken ended with status 1; the end of" in shown
    assert "fast_max_tokens" in shown

    values = json.loads((tmp_path / "figures.json").read_text())
    assert values == json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [run["state"] for run in values["runs"]] == ["finished", "finished", "failed"]
    for run, directory in zip(values["runs"], (first, second), strict=False):
        last = json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])
        assert run["evaluation"] == {name: last[name] for name in last if name not in ("step", "kind")}
        assert run["steps"] == 40
    assert "\n| 0 | 1 |" in (tmp_path / "out" / "sweep.md").read_text()
    assert Image.open(tmp_path / "out" / "sweep.png").width > 1000


def test_ctrl_c_has_the_runs_save_first_and_a_second_sweep_is_refused_meanwhile(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = write(tmp_path / "s.yaml", set={"steps": 100_000}, grid={LAMBDA: [0, 1]})
    first, second = (tmp_path / "out" / f"lambda={weight}" for weight in (0, 1))

    refused = []

    def interrupt() -> None:
        try:
            wait_for(lambda: checkpoint_steps(first))
            command(config=path, set=(), output=None, jobs=1, json=None)
        except InUseError as error:
            refused.append(str(error))
        finally:
            # What Ctrl-C does, and not ignored where a shell has put the tests in the background.
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status = command(config=path, set=(), output=None, jobs=1, json=tmp_path / "figures.json")
    thread.join()
    assert status == 130
    assert len(refused) == 1
    assert "in use by another sweep" in refused[0]
    assert steps_of(first) == list(range(1, checkpoint_steps(first)[-1] + 1))
    assert not second.exists()
    values = json.loads((tmp_path / "figures.json").read_text())
    assert [run["state"] for run in values["runs"]] == ["interrupted", "waiting"]
