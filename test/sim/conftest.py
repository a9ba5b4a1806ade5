"""The rig that the tests of the simulator share: building it takes longer than most of them."""

import pytest

from ki_ros.sim import SimulatedRig, SimulationUnavailableError
from ki_ros.sim.assets import asset_directory, require_mujoco
from ki_ros.sim.render import resolve_backend


@pytest.fixture(scope="session")
def physics() -> None:
    """Skips, saying what is missing, where the physics cannot run."""
    try:
        require_mujoco()
        asset_directory()
    except SimulationUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def graphics(physics) -> None:  # noqa: ARG001
    """Skips, saying what is missing, where nothing can be drawn."""
    try:
        resolve_backend()
    except SimulationUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def _shared_rig(physics):  # noqa: ARG001
    simulated = SimulatedRig(seed=0)
    yield simulated
    simulated.close()


@pytest.fixture
def simulated(_shared_rig) -> SimulatedRig:
    """A rig at its reset pose, blocks as seed 0 has them."""
    _shared_rig.reset(seed=0)
    return _shared_rig
