"""A file that could not be written after the work is refused before it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ki_ros import cli

ROOT = Path(__file__).resolve().parents[2]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main([*map(str, arguments)])
    assert end.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("option", ["json", "status"])
def test_a_file_without_a_directory_is_refused(option: str, tmp_path: Path, capsys) -> None:
    file = tmp_path / "missing" / "figures.json"
    said = refusal(capsys, "train", tmp_path / "run.yaml", f"--{option}", file)
    assert said == f"ki-ros: {option} is {file}; its directory does not exist: make it, or give another path\n"


@pytest.mark.parametrize(
    ("place", "what"),
    [
        (".", "a directory; give a file"),
        ("file/figures.json", "cannot be written (Not a directory); give another path"),
        ("x" * 300, "cannot be written (File name too long); give another path"),
        ("/dev/null", "no file that can be replaced"),
        ("/proc/figures.json", "cannot be written ("),
    ],
)
def test_a_place_that_takes_no_file_is_refused(place: str, what: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    file = tmp_path / place
    said = refusal(capsys, "evaluate", "--episodes", 0, "--json", file)
    assert said.startswith(f"ki-ros: json is {file}, ")
    assert what in said


def test_what_is_there_stays_until_it_is_replaced(tmp_path: Path, capsys) -> None:
    file = tmp_path / "figures.json"
    file.write_text("earlier")
    assert "episodes is 0" in refusal(capsys, "evaluate", "--episodes", 0, "--json", file)
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]
    assert file.read_text() == "earlier"


def test_a_file_in_a_directory_that_the_command_makes_is_not_refused(tmp_path: Path, capsys) -> None:
    output = tmp_path / "out"
    assert "seconds is 0" in refusal(capsys, "demo", "--seconds", 0, "--output", output, "--json", output / "a.json")


def test_benchmarks_refuse_it_too(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "figures.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "executor.py"), "--json", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert f"argument --json: the file is {file}; its directory does not exist" in done.stderr
