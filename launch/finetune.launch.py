"""Fine-tunes on a directory of bags: the policy node in its training mode, without a policy and away from any arm."""

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
    settings = bringup.parse(dict(context.launch_configurations), bringup.FinetuneSettings)
    description = bringup.describe_finetune(settings)
    (parameters,) = description.parameters
    trainer = Node(
        package="ki_ros",
        executable=description.executable,
        name=description.name,
        namespace=description.namespace,
        parameters=[parameters],
        output="screen",
    )
    variables = [SetEnvironmentVariable(name, value) for name, value in bringup.environment(sim=False).items()]
    return [*variables, RegisterEventHandler(OnProcessExit(target_action=trainer, on_exit=_ended)), trainer]


def _ended(event, context):
    reason = f"{event.process_name} ended with status {event.returncode}"
    if event.returncode and not context.is_shutdown:
        # launch logs it and exits with 1. A Shutdown event would exit with 0.
        raise RuntimeError(reason)
    return [EmitEvent(event=Shutdown(reason=reason))]


def generate_launch_description():
    """Declares the settings of `ki_ros.bringup.FinetuneSettings` as arguments and starts the node they describe."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=help_text)
        for name, default, help_text in bringup.arguments(bringup.FinetuneSettings)
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_start)])
