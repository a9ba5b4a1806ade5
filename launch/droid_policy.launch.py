"""The graph on a DROID rig, or on the simulated one with sim:=true."""

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from ki_ros import bringup


def _start(context):
    settings = bringup.parse({name: LaunchConfiguration(name).perform(context) for name, _, _ in bringup.arguments()})
    nodes = [
        Node(
            package="ki_ros",
            executable=description.name,
            name=description.name,
            parameters=[str(p) if not isinstance(p, dict) else p for p in description.parameters],
            output="screen",
        )
        for description in bringup.describe(settings)
    ]
    # A graph with a part missing is no graph: if one process ends, all end, and the controllers hold the arm.
    guards = [
        RegisterEventHandler(
            OnProcessExit(target_action=node, on_exit=[EmitEvent(event=Shutdown(reason="a node of the graph ended"))])
        )
        for node in nodes
    ]
    record = bringup.record_command(settings)
    recorder = [ExecuteProcess(cmd=record, output="screen")] if record else []
    variables = [SetEnvironmentVariable(name, value) for name, value in bringup.environment().items()]
    return [*variables, *guards, *nodes, *recorder]


def generate_launch_description():
    """Declares the settings of `ki_ros.bringup` as arguments and starts the nodes that it describes."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=help_text)
        for name, default, help_text in bringup.arguments()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start)])
