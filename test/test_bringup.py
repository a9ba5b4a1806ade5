"""What is started, from which settings and files."""

from __future__ import annotations

import dataclasses
import shlex
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from ki_ros import bringup
from ki_ros.bringup import BringupError, Settings

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "config").glob("*.yaml"))


def names(settings: Settings) -> list[str]:
    return [node.name for node in bringup.describe(settings)]


def merged(settings: Settings, node: str) -> dict:
    """The parameters that a node would be given by its mappings, later ones winning."""
    (description,) = (d for d in bringup.describe(settings) if d.name == node)
    values: dict = {}
    for source in description.parameters:
        if isinstance(source, dict):
            values.update(source)
    return values


def test_the_simulator_is_started_only_when_asked_for():
    assert names(Settings(sim=True)) == ["simulator", "observation", "policy", "executor"]
    assert names(Settings()) == ["observation", "policy", "executor"]


def test_a_machine_starts_the_nodes_that_are_its_own():
    assert names(Settings(nodes="executor, observation")) == ["observation", "executor"]
    assert names(Settings(nodes="policy", sim=True)) == ["policy"]
    assert names(Settings(nodes="observation executor recorder", record="true")) == [
        "observation",
        "executor",
        "recorder",
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(nodes="policies"), r"nodes is 'policies'.*did you mean 'policy'"),
        (Settings(nodes="policy,x"), r"no node is called 'x'; give some of simulator, observation, policy"),
        (Settings(nodes="simulator"), r"no simulator; give sim:=true"),
        (Settings(nodes="recorder", record="false"), r"no recorder; give record:=true"),
    ],
)
def test_a_node_that_is_no_part_of_the_graph_is_refused(settings, message):
    with pytest.raises(BringupError, match=message):
        bringup.describe(settings)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_every_configuration_that_ships_is_accepted(config):
    assert names(Settings(params_file=str(config)))


def test_settings_reach_the_nodes_that_they_concern():
    settings = Settings(sim=True, robot="fr3", wrist_topic="/w", instruction="wave", checkpoint="/c")
    assert merged(settings, "observation")["wrist.topic"] == "/w"
    assert merged(settings, "simulator")["wrist.topic"] == "/w"
    assert merged(settings, "executor")["instruction"] == "wave"
    assert merged(settings, "policy")["checkpoint"] == "/c"
    assert {merged(settings, node)["robot"] for node in ("simulator", "observation", "executor")} == {"fr3"}


@pytest.mark.parametrize(
    ("controller", "parameter"),
    [
        ("", "arm_command_topic"),
        ("forward_command", "arm_command_topic"),
        ("joint_trajectory", "trajectory_topic"),
        ("joint_impedance", "target_joint_topic"),
        ("forward_velocity", "velocity_command_topic"),
    ],
)
def test_the_controller_s_topic_is_that_of_the_chosen_controller(controller, parameter, tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(f"executor:\n  ros__parameters: {{controller: {controller or 'forward_command'}}}\n")
    for settings in (Settings(controller=controller, sim=True), Settings(params_file=str(file), sim=True)):
        settings = dataclasses.replace(settings, controller_topic="/c")
        for node in ("executor", "simulator"):
            given = merged(settings, node)
            assert {key for key, value in given.items() if value == "/c"} == {parameter}


def test_the_simulated_rig_is_where_the_file_says_that_the_rig_is(tmp_path):
    file = tmp_path / "params.yaml"
    text = (
        "observation:\n  ros__parameters:\n    robot: fr3\n    joint_states_topic: /j\n    gripper_topic: /g\n"
        "    exterior_1: {topic: /e, transport: compressed}\n    wrist: {topic: /w, transport: compressed}\n"
        "executor:\n  ros__parameters: {trajectory_topic: /t, gripper_command_topic: /gc}\n"
    )
    file.write_text(text)
    given = merged(Settings(sim=True, params_file=str(file), wrist_topic="/v"), "simulator")
    assert given == {
        "use_sim_time": False,
        "robot": "fr3",
        "exterior_1.topic": "/e",
        "wrist.topic": "/v",
        "encoding": "jpeg",
        "joint_states_topic": "/j",
        "gripper_states_topic": "/g",
        "trajectory_topic": "/t",
        "gripper_command_topic": "/gc",
    }
    file.write_text(text + "simulator:\n  ros__parameters: {joint_states_topic: /mine}\n")
    assert "joint_states_topic" not in merged(Settings(sim=True, params_file=str(file)), "simulator")
    file.write_text(text.replace("/w, transport: compressed", "/w"))
    with pytest.raises(BringupError, match=r"exterior_1\.transport compressed, wrist\.transport raw.*all cameras the"):
        bringup.describe(Settings(sim=True, params_file=str(file)))


def test_simulated_time_is_everybody_s_but_the_simulator_s():
    settings = Settings(sim=True, record="true", params_file=str(ROOT / "config" / "droid_zed.yaml"))
    given = {node: merged(settings, node)["use_sim_time"] for node in names(settings)}
    assert given == dict.fromkeys(("observation", "policy", "executor", "recorder"), True) | {"simulator": False}
    assert "use_sim_time" not in merged(Settings(), "executor")


def test_an_empty_setting_leaves_what_the_file_says():
    assert "wrist.topic" not in merged(Settings(sim=True), "observation")
    assert "checkpoint" not in merged(Settings(sim=True), "policy")


def test_an_unknown_robot_is_refused_with_the_known_ones():
    with pytest.raises(BringupError, match=r"'ur5'.*panda, fr3"):
        bringup.describe(Settings(robot="ur5"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("observtion:\n  ros__parameters: {}\n", "did you mean 'observation'"),
        ("policy:\n  parameters: {}\n", "ros__parameters"),
        ("- a\n", "no mapping"),
        ("a: [\n", "not YAML"),
    ],
)
def test_a_malformed_parameter_file_is_refused(tmp_path, text, message):
    file = tmp_path / "params.yaml"
    file.write_text(text)
    with pytest.raises(BringupError, match=message):
        bringup.describe(Settings(params_file=str(file)))


def test_a_missing_parameter_file_is_named(tmp_path):
    with pytest.raises(BringupError, match=r"nowhere\.yaml.*No such file"):
        bringup.describe(Settings(params_file=str(tmp_path / "nowhere.yaml")))


def test_launch_arguments_become_settings():
    values = {name: default for name, default, _ in bringup.arguments()}
    assert bringup.parse(values) == Settings()
    assert bringup.parse({**values, "sim": "True", "robot": "fr3"}) == Settings(sim=True, robot="fr3")
    assert bringup.parse({**values, "auto_episodes": "true"}) == Settings(auto_episodes=True)
    for name in ("sim", "auto_episodes"):
        with pytest.raises(BringupError, match=rf"{name} is 'maybe'.*true or false"):
            bringup.parse({**values, name: "maybe"})


def test_every_setting_is_described():
    assert all(text for _, _, text in bringup.arguments())
    assert len(bringup.arguments()) == len(dataclasses.fields(Settings))


def test_the_recorder_is_started_only_when_asked_for():
    for record in ("", "false", "False"):
        assert "recorder" not in names(Settings(sim=True, record=record))
    assert names(Settings(record="true")) == ["observation", "policy", "executor", "recorder"]
    assert "output" not in merged(Settings(record="true"), "recorder")
    assert merged(Settings(record="bags/one"), "recorder")["output"] == "bags/one"
    assert merged(Settings(record="true", auto_episodes=True), "recorder")["auto_episodes"] is True


def test_the_recorder_has_the_topics_of_the_nodes_that_use_them(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(
        "/**:\n  ros__parameters: {robot: fr3}\n"
        "observation:\n  ros__parameters:\n    exterior_1: {topic: '', max_age: 0.2}\n"
        "    wrist: {topic: /w, transport: compressed}\n    rate: 10\n"
        "executor:\n  ros__parameters: {controller: joint_trajectory, command_rate: 50, gripper_command_topic: /g}\n"
    )
    settings = Settings(params_file=str(file), record="true", controller_topic="/t", joint_states_topic="/j")
    assert merged(settings, "recorder") == {
        "robot": "fr3",
        "exterior_1.topic": "",
        "wrist.topic": "/w",
        "wrist.transport": "compressed",
        "joint_states_topic": "/j",
        "trajectory_topic": "/t",
        "gripper_command_topic": "/g",
    }


def test_the_plain_command_records_the_graph_and_the_sensors(tmp_path):
    command = bringup.plain_record_command(Settings(sim=True, record="bags/one", wrist_topic="/w"))
    topics = command[command.index("--topics") + 1 :]
    sensors = {"/w", "/camera/exterior_1/image_raw", "/joint_states", "/gripper/joint_states"}
    commands = {"/joint_command", "/forward_position_controller/commands", "/gripper_position_controller/commands"}
    assert sensors | commands | {"/epoch", "/instruction", "/observation_status", "/episode"} <= set(topics)
    assert len(topics) == len(set(topics))
    assert command[command.index("--output") + 1] == "bags/one"
    assert command[command.index("--storage") + 1] == "mcap"
    assert "--use-sim-time" in command
    assert "--output" not in bringup.plain_record_command(Settings(record="true"))
    file = tmp_path / "params.yaml"
    file.write_text("observation:\n  ros__parameters: {wrist: {topic: /camera/exterior_1/image_raw}}\n")
    with pytest.raises(BringupError, match=r"exterior_1\.topic and wrist\.topic"):
        bringup.plain_record_command(Settings(params_file=str(file)))


def test_the_plain_command_has_the_topics_of_the_recorder():
    """With its own defaults, and with each file that ships."""
    from ki_ros.data.recorder.topics import recorded_topics
    from ki_ros.observation.rig_streams import RigStreams

    executor = bringup._EXECUTOR_TOPICS
    for config in CONFIGS:
        streams = RigStreams.from_parameter_file(config)
        command = bringup.plain_record_command(Settings(params_file=str(config)))
        assert command[command.index("--topics") + 1 :] == recorded_topics(streams, **executor).names


@pytest.mark.parametrize("document", ["README.md", "docs/recording.md"])
def test_the_documented_plain_command_is_the_one_of_the_default_file(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    assert shlex.join(bringup.plain_record_command(Settings())) in " ".join(text.replace("\\\n", " ").split())


def test_the_fast_dds_profile_is_chosen_unless_there_is_one(monkeypatch):
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        monkeypatch.delenv(name, raising=False)
    profile = bringup.environment(sim=False)["FASTRTPS_DEFAULT_PROFILES_FILE"]
    segments = [int(e.text) for e in ElementTree.parse(profile).iter() if e.tag.endswith("segment_size")]
    assert max(segments) >= 3 * 1280 * 720 * 4, "three 720p frames must fit into shared memory"
    several = bringup.environment(sim=False, nodes="policy")["FASTRTPS_DEFAULT_PROFILES_FILE"]
    (message,) = (int(e.text) for e in ElementTree.parse(several).iter() if e.tag.endswith("value"))
    assert message <= 1280 - 48, "a message must fit into a packet, a VPN's too"
    monkeypatch.setenv("FASTDDS_DEFAULT_PROFILES_FILE", "/mine.xml")
    assert not any("PROFILES" in name for name in bringup.environment(sim=False))


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.name != "droid_sim.yaml"], ids=lambda path: path.name)
def test_no_configuration_for_a_real_rig_starts_enabled(config):
    values = yaml.safe_load(config.read_text())
    assert not values.get("executor", {}).get("ros__parameters", {}).get("enabled_at_start", False)


def test_a_simulation_stays_on_this_machine_unless_discovery_is_configured(monkeypatch):
    for name in ("ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY", "ROS_STATIC_PEERS", "ROS_DISCOVERY_SERVER"):
        monkeypatch.delenv(name, raising=False)
    assert bringup.environment(sim=True)["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert "ROS_AUTOMATIC_DISCOVERY_RANGE" not in bringup.environment(sim=False)
    monkeypatch.setenv("ROS_STATIC_PEERS", "10.0.0.2")
    assert "ROS_AUTOMATIC_DISCOVERY_RANGE" not in bringup.environment(sim=True)


def test_settings_win_over_the_parameter_file(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text(
        "/**:\n  ros__parameters: {robot: fr3}\n"
        "executor:\n  ros__parameters: {command_rate: 50, controller: joint_trajectory, joint_states_topic: /a}\n"
    )
    settings = Settings(params_file=str(file), joint_states_topic="/b", controller_topic="/c")
    chosen = bringup.chosen_parameters(settings, "executor")
    assert (chosen["robot"], chosen["command_rate"], chosen["joint_states_topic"]) == ("fr3", 50, "/b")
    assert chosen["trajectory_topic"] == "/c", "the controller that the file names takes the topic"


def test_a_preset_that_is_asked_for_does_not_take_the_file_s_checkpoint(tmp_path):
    file = tmp_path / "params.yaml"
    file.write_text("policy:\n  ros__parameters: {preset: lab, checkpoint: /of/the/lab}\n")
    asked = {"": "/of/the/lab", "/given": "/given"}
    for checkpoint, expected in asked.items():
        settings = Settings(params_file=str(file), checkpoint=checkpoint)
        assert bringup.chosen_parameters(settings, "policy")["checkpoint"] == expected
    settings = Settings(params_file=str(file), preset="ki_tiny")
    assert bringup.chosen_parameters(settings, "policy")["checkpoint"] == ""
