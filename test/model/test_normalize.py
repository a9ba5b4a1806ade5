from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ki_ros.model.normalize import NormStats, NormStatsError, normalize_quantile, unnormalize_quantile

STATS = {name: {"q01": [-1.0] * 8, "q99": [2.0] * 8} for name in ("state", "actions")}


def test_equals_openpi(test_data: Path) -> None:
    cases = json.loads((test_data / "pi05_reference" / "normalize.json").read_text())["cases"]
    for case in cases:
        x, q01, q99 = np.array(case["x"], case["x_dtype"]), np.array(case["q01"]), np.array(case["q99"])
        for function in (normalize_quantile, unnormalize_quantile):
            name = function.__name__
            if case[name] is None:
                with pytest.raises(ValueError, match="quantile"):
                    function(x, q01, q99)
                continue
            got = function(x, q01, q99)
            assert got.dtype == np.dtype(case[f"{name}_dtype"]) == np.float64
            np.testing.assert_allclose(got, case[name], rtol=1e-14, atol=1e-14, err_msg=case["note"])
    assert len(cases) > 20


@given(
    x=st.lists(st.floats(-100, 100), min_size=3, max_size=3),
    q01=st.lists(st.floats(-10, 10), min_size=3, max_size=3),
    spread=st.lists(st.floats(0.01, 20), min_size=3, max_size=3),
)
def test_round_trip(x: list[float], q01: list[float], spread: list[float]) -> None:
    low, high = np.array(q01), np.array(q01) + spread
    there = normalize_quantile(np.array(x), low, high)
    np.testing.assert_allclose(unnormalize_quantile(there, low, high), x, atol=1e-10)


@given(
    q01=st.floats(-10, 10),
    spread=st.floats(0.01, 20),
)
def test_quantiles_map_to_the_ends(q01: float, spread: float) -> None:
    ends = normalize_quantile(np.array([[q01], [q01 + spread]]), np.array([q01]), np.array([q01 + spread]))
    np.testing.assert_allclose(ends, [[-1.0], [1.0]], atol=3e-4)


def write(path: Path, stats: object) -> Path:
    file = path / "norm_stats.json"
    file.write_text(json.dumps({"norm_stats": stats}))
    return file


def test_public_statistics_load(test_data: Path) -> None:
    stats = NormStats.load(test_data / "pi05_droid_quantiles.json")
    assert stats.state.q01.shape == stats.actions.q99.shape == (8,)
    assert stats.state.q99[7] == 0.991


def test_padding_with_zeros_is_left_out(tmp_path: Path) -> None:
    padded = {name: {key: value + [0.0] * 24 for key, value in entry.items()} for name, entry in STATS.items()}
    assert NormStats.load(write(tmp_path, padded)).actions.q99.tolist() == [2.0] * 8


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("state", "q01", None, r"norm_stats\.state\.q01 is missing"),
        ("actions", "q99", [2.0] * 7, r"actions\.q99 has shape \(7,\); expected \(8,\)"),
        ("actions", "q99", [2.0] * 9, r"actions\.q99 has shape \(9,\)"),
        ("actions", "q99", [[2.0] * 8], r"actions\.q99 has shape \(1, 8\)"),
        ("actions", "q99", "high", r"actions\.q99 is 'high'"),
        ("state", "q01", [0.0, float("nan"), *[0.0] * 6], r"state\.q01\[1\] is nan"),
        ("state", "q99", [2.0, 2.0, float("inf"), *[2.0] * 5], r"state\.q99\[2\] is inf"),
        ("state", "q99", [2.0] * 7 + [-1.0], r"state\.q99\[7\] is -1\.0, not above state\.q01\[7\] -1\.0"),
    ],
)
def test_bad_statistics_are_named(tmp_path: Path, name: str, key: str, value: object, message: str) -> None:
    stats = json.loads(json.dumps(STATS))
    if value is None:
        del stats[name][key]
    else:
        stats[name][key] = value
    with pytest.raises(NormStatsError, match=message):
        NormStats.load(write(tmp_path, stats))


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(NormStatsError, match=r"gone\.json: cannot be read"):
        NormStats.load(tmp_path / "gone.json")
    file = tmp_path / "other.json"
    file.write_text("[]")
    with pytest.raises(NormStatsError, match="norm_stats is missing"):
        NormStats.load(file)
    with pytest.raises(NormStatsError, match=r"norm_stats\.actions is missing"):
        NormStats.load(write(tmp_path, {"state": STATS["state"]}))
