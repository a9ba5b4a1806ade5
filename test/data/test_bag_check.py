"""What `ki-ros bags check` says about recordings whose faults are known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_bags import CAMERAS, MadeBag, joints_at, ns
from PIL import Image

from ki_ros.data.bag import encode
from ki_ros.data.check import EpisodeFigures, Verdict, check_bag
from ki_ros.data.droid import Episode as DroidEpisode
from ki_ros.data.episodes import read_episodes
from ki_ros.rig import PANDA, CameraRole


def demonstration(seconds: float = 3.0) -> MadeBag:
    """A recording without a fault: commands lead the arm by 20 ms."""
    made = MadeBag().rig(seconds)
    made.start(0.1, "demo", "wipe the table")
    for t in np.arange(0.05, seconds, 0.01):
        made.command(t, joints_at(t + 0.02), 0.1)
    made.stop(seconds - 0.1, "demo")
    return made


def checked(tmp_path: Path, made: MadeBag) -> EpisodeFigures:
    check = check_bag(made.write(tmp_path / "bag"))
    assert not check.error
    ((_, figures),) = check.episodes
    return figures


def says(figures: EpisodeFigures, verdict: Verdict, *words: str) -> bool:
    return any(f.verdict is verdict and all(word in f.text for word in words) for f in figures.findings)


def test_a_good_recording(tmp_path):
    figures = checked(tmp_path, demonstration())
    assert figures.findings == ()
    assert figures.verdict is Verdict.GOOD
    assert figures.steps == 43
    assert figures.seconds == pytest.approx(2.8, abs=1e-6)
    assert figures.rate == pytest.approx(15, abs=1e-3)
    rates = {"exterior_1": 30, "wrist": 30, "joint_states": 200, "gripper": 50}
    for name, rate in rates.items():
        assert figures.streams[name].rate == pytest.approx(rate, abs=1e-3)
        assert figures.streams[name].longest_gap == pytest.approx(1 / rate, abs=1e-6)
        assert figures.streams[name].lost == 0
    assert figures.streams["exterior_1"].delay == pytest.approx(0.004)
    # Stamps of the two cameras are 11 ms apart, and the exterior's period is 33 ms.
    assert 0.011 <= figures.skew[0] <= figures.skew[1] <= 0.0345
    assert figures.position_excess == 0
    assert figures.tracking == pytest.approx(0.2 * 0.02, rel=0.3)
    assert figures.velocity_share == pytest.approx(0.2 / 2.175, rel=0.02)


def test_dropped_frames_and_a_gap(tmp_path):
    made = demonstration()
    wrist = [m for m in made.messages if m[0] == CAMERAS["wrist"] and ns(0.2) < m[2] < ns(2.7)]
    for message in [*wrist[5:12], wrist[30]]:
        made.messages.remove(message)
    figures = checked(tmp_path, made)
    assert figures.streams["wrist"].lost == 8
    assert figures.streams["wrist"].longest_gap == pytest.approx(8 / 30, abs=1e-3)
    assert figures.segments == 2
    assert figures.refused in ({"wrist stale": 1}, {"wrist stale": 2})
    assert says(figures, Verdict.DOUBTFUL, "wrist", "8 messages missing")
    assert says(figures, Verdict.DOUBTFUL, "no observation", "wrist stale")


def test_a_pause_of_the_recording_is_no_loss_of_messages(tmp_path):
    made = demonstration()
    made.set_clock(1.5, 600)
    figures = checked(tmp_path, made)
    assert figures.segments == 2
    assert figures.silent == pytest.approx(600, abs=0.1)
    rates = {"exterior_1": 30, "wrist": 30, "joint_states": 200, "gripper": 50}
    for name, rate in rates.items():
        assert figures.streams[name].lost <= 1
        assert figures.streams[name].rate == pytest.approx(rate, rel=0.05)
        assert figures.streams[name].longest_gap == pytest.approx(600, abs=0.1)
    assert says(figures, Verdict.DOUBTFUL, "in the middle nothing was recorded for 600 s")
    assert figures.verdict is Verdict.DOUBTFUL


def test_skew_between_cameras(tmp_path):
    made = demonstration()
    made.messages = [m for m in made.messages if m[0] != CAMERAS["wrist"]]
    # The wrist's pictures arrive 80 ms after they are taken.
    made.camera("wrist", np.arange(0.0, 2.9, 1 / 30), late=0.08)
    figures = checked(tmp_path, made)
    assert figures.streams["wrist"].delay == pytest.approx(0.08)
    assert 0.08 - 1 / 30 < figures.skew[0] <= figures.skew[1] < 0.08 + 1 / 30 + 0.005


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("position", ("beyond a position limit",)),
        ("velocity", ("of a velocity limit",)),
        ("tracking", ("rad from its command",)),
    ],
)
def test_limits_that_are_exceeded(tmp_path, fault, words):
    made = demonstration()

    def positions(t: float) -> np.ndarray:
        q = joints_at(t)
        if fault == "position":
            q[3] = PANDA.position_upper[3] + 0.05
        if fault == "velocity":
            q[0] = 2.5 * (t - 1.5) if 1 < t < 2 else -1.25 if t <= 1 else 1.25
        return q

    made.messages = [m for m in made.messages if m[0] not in ("/joint_states", "/joint_command")]
    made.arm(np.arange(0, 3, 0.005), positions)
    for t in np.arange(0.05, 3, 0.01):
        made.command(t, positions(t) + (0.4 if fault == "tracking" else 0.0), 0.1)
    figures = checked(tmp_path, made)
    assert figures.verdict is Verdict.BAD
    assert says(figures, Verdict.BAD, *words)
    assert sum(f.verdict is Verdict.BAD for f in figures.findings) == 1
    if fault == "position":
        assert figures.position_excess == pytest.approx(0.05)
    if fault == "velocity":
        assert figures.velocity_share == pytest.approx(2.5 / 2.175, rel=0.02)


def test_an_arm_that_stands_still(tmp_path):
    made = demonstration()
    made.messages = [m for m in made.messages if m[0] not in ("/joint_states", "/joint_command")]
    made.arm(np.arange(0, 3, 0.005), lambda _: joints_at(0))
    for t in np.arange(0.05, 3, 0.01):
        made.command(t, joints_at(0), 0.1)
    figures = checked(tmp_path, made)
    assert figures.idle_share == 1
    assert says(figures, Verdict.BAD, "100% idle")


def test_what_is_not_known(tmp_path):
    figures = checked(tmp_path, MadeBag().rig(2.0))
    assert says(figures, Verdict.BAD, "no instruction")
    assert says(figures, Verdict.DOUBTFUL, "outcome unknown")
    assert says(figures, Verdict.DOUBTFUL, "actions are what was measured")


def test_a_killed_recording(tmp_path):
    made = demonstration()
    made.messages = [m for m in made.messages if m[0] != "/episode"]
    made.start(0.1, "demo", "wipe the table")
    assert says(checked(tmp_path, made), Verdict.DOUBTFUL, "its end was not recorded")


def run(*arguments: object, columns: int = 200) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ki_ros.cli", "bags", "check", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={"COLUMNS": str(columns)}, check=False
    )


def test_the_command(tmp_path):
    bags = tmp_path / "bags"
    demonstration().write(bags / "good")
    assert run(bags, "--strict").returncode == 0
    MadeBag().rig(1.5).write(bags / "day 2" / "silent")
    (bags / "broken").mkdir()
    (bags / "broken" / "broken_0.mcap").write_bytes(b"no recording")
    figures, pictures = tmp_path / "figures.json", tmp_path / "pictures"
    done = run(bags, "--json", figures, "--pictures", pictures)
    assert done.returncode == 0, done.stderr
    for words in ("wipe the table", "no instruction", "broken_0.mcap", "200.0 Hz", "2 episodes: 1 good", "1 bad"):
        assert words in done.stdout
    written = json.loads(figures.read_text())
    assert written["verdicts"] == {"good": 1, "doubtful": 0, "bad": 1, "unread": 1}
    assert [bag["verdict"] for bag in written["bags"]] == ["bad", "bad", "good"]
    assert {file.name for file in pictures.iterdir()} == {"day_2_silent.png", "good.png"}
    with Image.open(pictures / "good.png") as picture:
        assert picture.width > 1000
    assert run(bags, "--strict").returncode == 1


def test_figures_and_verdicts_are_whole_on_80_columns(tmp_path):
    demonstration().write(tmp_path / "20261128T005939Z_71ffd5fb0a")
    done = run(tmp_path, columns=80)
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert max(map(len, lines)) <= 80
    assert "'wipe the table', success" in lines
    assert "joint_states  200.0 Hz, longest gap 5 ms, none missing" in lines
    assert any(line.startswith("good ") and "20261128T005939Z_71ffd5fb0a" in line for line in lines)
    assert "…" not in done.stdout


def test_a_directory_without_bags(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 1
    assert "no bag is in it" in done.stderr
    assert "does not exist" in run(tmp_path / "nowhere").stderr


def test_a_real_episode_as_a_bag(test_data, tmp_path):
    """A DROID episode on the topics of a rig: its states come back, and its figures are those of 15 Hz."""
    droid = DroidEpisode.load(test_data / "droid_100", 0)
    count = min(len(droid), 60)
    made = MadeBag()
    for step in range(count):
        t = step / 15
        for role, topic in CAMERAS.items():
            raw = encode.image(ns(t), role, droid.image(CameraRole(role), step))
            made.put(topic, "image", t + 0.002, raw)
        *joints, closedness = droid.states[step]
        made.arm([t], lambda _, joints=joints: np.array(joints))
        made.gripper([t], lambda _, closedness=closedness: 0.8 * closedness)
    made.instruction(0.0, droid.instruction)
    (episode,) = read_episodes(made.write(tmp_path / "bag"))
    assert len(episode) == count - 1
    np.testing.assert_allclose(episode.states, droid.states[: count - 1], atol=1e-12)
    np.testing.assert_array_equal(episode.targets[:-1], episode.states[1:])
    figures = checked(tmp_path / "again", made)
    assert figures.streams["wrist"].rate == pytest.approx(15, abs=1e-3)
    assert figures.verdict is Verdict.DOUBTFUL, figures.findings
