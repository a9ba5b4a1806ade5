"""What the tests of lockstep need to be installed."""

import pytest

from ki_ros.sim import SimulationUnavailableError
from ki_ros.sim.assets import asset_directory, require_mujoco
from ki_ros.sim.render import resolve_backend


@pytest.fixture(scope="session", autouse=True)
def _graphics() -> None:
    """Skips, saying what is missing, where physics or pictures cannot be had."""
    try:
        require_mujoco()
        asset_directory()
        resolve_backend()
    except SimulationUnavailableError as error:
        pytest.skip(str(error))
