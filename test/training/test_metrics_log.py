"""The files and the text that a run leaves, read by other means than those that wrote them."""

from __future__ import annotations

import io
import json
import math
import sys

import pytest
import torch
from rich.console import Console

from ki_ros.training.metrics import METRICS_FILE, MetricsError, MetricsLog, read_metrics

VALUES = {"flow_loss": 0.5, "fast_loss": 2.25, "fast_accuracy": 0.125, "samples_per_second": 12.0}


def open_log(directory, *, start=0, console=None, progress=False, tensorboard=False, total=100) -> MetricsLog:
    return MetricsLog(
        directory, total_steps=total, start_step=start, progress=progress, tensorboard=tensorboard, console=console
    )


def strict_lines(path) -> list[dict]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_lines_are_there_at_once_and_valid_json(tmp_path) -> None:
    with open_log(tmp_path / "run") as log:
        log.log(1, {"loss": torch.tensor(0.25), "grad_norm": float("nan")})
        log.log(1, {"loss": float("-inf")}, kind="eval")
        assert strict_lines(tmp_path / "run" / METRICS_FILE) == [
            {"step": 1, "kind": "train", "loss": 0.25, "grad_norm": None},
            {"step": 1, "kind": "eval", "loss": None},
        ]
    first, second = read_metrics(tmp_path / "run" / METRICS_FILE)
    assert math.isnan(first.pop("grad_norm"))
    assert first == {"step": 1, "kind": "train", "loss": 0.25}
    assert math.isnan(second["loss"])


def test_resuming_takes_later_steps_back(tmp_path) -> None:
    with open_log(tmp_path) as log:
        for step in range(10, 60, 10):
            log.log(step, {"loss": step})
            log.log(step, {"loss": -step}, kind="eval")
    with open_log(tmp_path, start=30) as log:
        log.log(40, {"loss": 4.5})
    lines = strict_lines(tmp_path / METRICS_FILE)
    assert [line["step"] for line in lines] == [10, 10, 20, 20, 30, 30, 40]
    assert lines[-1]["loss"] == 4.5
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]


@pytest.mark.parametrize("cut", range(1, 12))
def test_an_unfinished_last_line_is_dropped(tmp_path, cut) -> None:
    with open_log(tmp_path) as log:
        log.log(1, {"loss": 1})
        log.log(2, {"loss": 2})
    path = tmp_path / METRICS_FILE
    path.write_bytes(path.read_bytes()[:-cut])
    left = [1, 2] if cut == 1 else [1]
    assert [line["step"] for line in read_metrics(path)] == left
    with open_log(tmp_path, start=2) as log:
        log.log(3, {"loss": 3})
    assert [line["step"] for line in strict_lines(path)] == [*left, 3]


@pytest.mark.parametrize("line", ["{", "[1]", '{"kind": "train"}', '{"step": 1}'])
def test_any_other_damage_is_named_and_left_alone(tmp_path, line) -> None:
    path = tmp_path / METRICS_FILE
    path.write_text('{"step": 1, "kind": "train"}\n' + line + '\n{"step": 3, "kind": "train"}\n')
    before = path.read_bytes()
    with pytest.raises(MetricsError, match="line 2"), open_log(tmp_path, start=1):
        pass
    assert path.read_bytes() == before


def test_reserved_names_and_impossible_steps_are_refused(tmp_path) -> None:
    with open_log(tmp_path) as log, pytest.raises(ValueError, match="values has 'step'"):
        log.log(1, {"step": 2.0})
    with pytest.raises(ValueError, match="start_step is 101"):
        open_log(tmp_path, start=101)
    with pytest.raises(ValueError, match="total_steps is 0"):
        open_log(tmp_path, total=0)


def test_without_a_terminal_there_are_few_plain_lines(tmp_path) -> None:
    text = io.StringIO()
    with open_log(tmp_path, progress=True, console=Console(file=text, width=40)) as log:
        for step in range(1, 101):
            log.log(step, VALUES)
            if step == 50:
                log.log(step, {"flow_loss": 0.25}, kind="eval")
                log.message("saved checkpoint [50]")
    lines = text.getvalue().splitlines()
    assert "\x1b" not in text.getvalue()
    assert lines[0].startswith("step 1/100: flow 0.5000, fast 2.2500, accuracy 12.5%, 12.0 samples/s, 0:00:0")
    assert lines[1:3] == ["step 50: eval, flow 0.2500", "saved checkpoint [50]"]
    assert lines[3].startswith("step 100/100: ")
    assert len(lines) == 4


def test_a_terminal_has_a_bar_with_messages_above(tmp_path) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120)
    with open_log(tmp_path, start=40, progress=True, console=console) as log:
        log.log(70, VALUES)
        log.message("saved checkpoint")
    out = text.getvalue()
    assert "saved checkpoint" in out
    assert out.index("saved checkpoint") < out.rindex("70/100")
    last = out[out.rindex("70/100") :]
    assert "flow 0.5000, fast 2.2500, accuracy 12.5%, 12.0 samples/s, 0:00:00 left" in last


def test_no_progress_is_silent_but_for_messages(tmp_path) -> None:
    text = io.StringIO()
    with open_log(tmp_path, console=Console(file=text)) as log:
        log.log(1, VALUES)
        log.message("done")
    assert text.getvalue() == "done\n"


def test_tensorboard_has_the_scalars_of_both_kinds(tmp_path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with open_log(tmp_path, tensorboard=True) as log:
        for step in (10, 20, 30):
            log.log(step, {"loss": step / 10})
        log.log(20, {"loss": 7.0}, kind="eval")
    with open_log(tmp_path, start=20, tensorboard=True) as log:
        log.log(30, {"loss": 9.0})
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(10, 1.0), (20, 2.0), (30, 9.0)]
    assert [(event.step, event.value) for event in events.Scalars("eval/loss")] == [(20, 7.0)]


def test_a_missing_tensorboard_is_an_error_with_the_fix(tmp_path, monkeypatch) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match="pip install tensorboard"), open_log(tmp_path, tensorboard=True):
        pass
    assert list(tmp_path.iterdir()) == []
