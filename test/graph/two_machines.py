"""The policy on another machine than the robot. Run by test_two_machines.py in the robot's network namespace."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from fake_rig import GRAPH_PARAMETERS, FakeRig
from faults import holds, instruct
from waiting import wait

from ki_ros import bringup
from ki_ros.commands.processes import Graph
from ki_ros.nodes import topics

POLICY_MACHINE = os.environ["KI_ROS_TEST_POLICY_MACHINE"]
"""Network namespace of the policy's machine."""

HERE = Path(__file__).parent


class Network:
    """The network between the machines."""

    def __init__(self) -> None:
        command = [sys.executable, str(HERE / "network.py"), POLICY_MACHINE]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout.readline() == "ready\n"

    def lose(self, share: float) -> None:
        """Loses that share of the packets from now on."""
        self._process.stdin.write(f"{share}\n")
        self._process.stdin.flush()

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


class Counting(FakeRig):
    """Keeps how many observations have been made, and how many of them have come to the policy."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.made = self.arrived = 0
        self.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, topics.COMMAND_QOS)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            if status.name == "policy: policy":
                self.arrived = int(values["observations"])
            if status.name == "observation: observation":
                self.made = int(values["published"])


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    network = Network()
    yield network
    network.close()


@pytest.fixture(scope="module")
def domain() -> int:
    """These namespaces are nobody else's."""
    os.environ.update(ROS_DOMAIN_ID="7", ROS_AUTOMATIC_DISCOVERY_RANGE="SUBNET")
    return 7


@pytest.fixture(scope="module")
def graph(tmp_path_factory, network, spinner) -> Iterator[tuple[Counting, Graph, Network]]:
    """A rig, observation and executor here, the policy there, and what joins them."""
    directory = tmp_path_factory.mktemp("graph")
    file = directory / "params.yaml"
    file.write_text(GRAPH_PARAMETERS)
    rig = Counting(context=spinner.context)
    spinner.start(rig)
    here = bringup.Settings(nodes="observation,executor", params_file=str(file))
    there = ["-m", "ki_ros.cli", "up", "--nodes", "policy", "--params-file", str(file)]
    with Graph(here, directory / "logs") as graph:
        graph.run("policy's machine", ["sh", str(HERE / "machine.sh"), POLICY_MACHINE, sys.executable, *there])
        wait(rig.service_is_ready, "the executor's services", check=graph.check)
        instruct(rig, "put the marker in the pot")
        wait(rig.executing, "execution", check=graph.check)
        yield rig, graph, network


def test_the_cable_is_pulled(graph):
    rig, processes, network = graph
    holds(
        rig,
        "cable to the policy's machine pulled",
        cause=lambda: network.lose(1.0),
        repair=lambda: network.lose(0.0),
        reasons={"stale_chunk", "chunk_exhausted"},
        recovery="the cable, then a new chunk",
    )
    processes.check()


def test_a_network_that_loses_packets_loses_no_observations(graph):
    """Of a hundred packets one is lost: with datagrams of 64 kB nine of ten observations would be."""
    rig, processes, network = graph
    network.lose(0.01)
    try:
        made, arrived = rig.made, rig.arrived
        wait(lambda: rig.made >= made + 150, "observations", check=processes.check)
        # Both nodes tell once a second, each in its own.
        made = rig.made - made
        wait(lambda: rig.arrived >= arrived + 0.9 * made, f"arrival of {made} observations", timeout=1.5)
    finally:
        network.lose(0.0)
