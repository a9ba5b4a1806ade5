"""The graph on a DROID rig, or on the simulated one with sim:=true."""

from launch import LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch_ros.actions import Node

from ki_ros import bringup


def _start(context):
    settings = bringup.parse(dict(context.launch_configurations))
    processes = [
        Node(
            package="ki_ros",
            executable=description.name,
            name=description.name,
            # Without it launch writes the settings below the wildcard /**, and the file's keys win over them.
            namespace="/",
            parameters=[str(p) if not isinstance(p, dict) else p for p in description.parameters],
            output="screen",
        )
        for description in bringup.describe(settings)
    ]
    guards = [RegisterEventHandler(OnProcessExit(target_action=process, on_exit=_ended)) for process in processes]
    environment = bringup.environment(sim=settings.sim, nodes=settings.nodes)
    variables = [SetEnvironmentVariable(name, value) for name, value in environment.items()]
    return [*variables, *guards, *processes]


def _ended(event, context):
    # A graph with a part missing is no graph: if one process ends, all end. The executor brings the arm to rest first;
    # where it is the executor that died, the controller decides, and forward_velocity goes on (docs/controllers.md).
    reason = f"{event.process_name} ended with status {event.returncode}; everything is stopped"
    if event.returncode and not context.is_shutdown:
        # launch logs it, stops the other processes, and exits with 1. A Shutdown event would exit with 0.
        raise RuntimeError(reason)
    return [EmitEvent(event=Shutdown(reason=reason))]


def generate_launch_description():
    """Declares the settings of `ki_ros.bringup` as arguments and starts the nodes that it describes."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=help_text)
        for name, default, help_text in bringup.arguments()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start)])
