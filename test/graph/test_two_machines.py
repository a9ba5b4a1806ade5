"""The graph on two machines, which are network namespaces: see two_machines.py."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from waiting import FAULTS, PATIENCE

HERE = Path(__file__).parent


def obstacle() -> str:
    """Why there can be no namespaces here; empty if there can."""
    missing = [command for command in ("ip", "unshare") if shutil.which(command) is None]
    if missing:
        return f"needs {', '.join(missing)} (Debian: iproute2, util-linux)"
    if os.geteuid() != 0:
        return "needs root, to make network namespaces"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "needs /dev/net/tun, for a network that can lose packets"
    return ""


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Network namespaces of the robot's and of the policy's machine."""
    if reason := obstacle():
        pytest.skip(reason)
    names = (f"ki_ros_robot_{os.getpid()}", f"ki_ros_policy_{os.getpid()}")
    with ExitStack() as made:
        for name in names:
            subprocess.run(["ip", "netns", "add", name], check=True)
            made.callback(subprocess.run, ["ip", "netns", "del", name], check=True)
        yield names


def test_a_policy_on_another_machine(machines, tmp_path):
    robot, policy = machines
    rows = tmp_path / "faults.json"
    environment = os.environ | {"KI_ROS_TEST_POLICY_MACHINE": policy, "KI_ROS_FAULTS_JSON": str(rows)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(HERE / "two_machines.py")]
    done = subprocess.run(
        ["sh", str(HERE / "machine.sh"), robot, *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=5 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    FAULTS.extend(json.loads(rows.read_text()))
