"""What an engine is."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ki_ros.model.model import KIModel
from ki_ros.model.observation import Observation
from ki_ros.model.rtc import Guidance


class EngineError(ValueError):
    """An engine that cannot be used; the message says why and what can."""


class Engine(Protocol):
    """Samples action chunks from the weights of one model. One thread at a time."""

    name: str
    num_steps: int

    def prepare(self) -> None:
        """Does everything that is done once, so that the first call is as fast as all others."""

    def sample(
        self,
        observation: Observation,
        noise: Tensor,
        *,
        committed: Tensor | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """`KIModel.sample_actions` of that many steps, for an observation of one row, within the engine's `BOUNDS`.

        Everything may be on the CPU or on the model's device. An engine on a GPU is faster if it is on the CPU: it then
        knows what is there without waiting for the device.
        """


class ReferenceEngine:
    """The model as it is written down: what every other engine is compared with."""

    name = "reference"

    def __init__(self, model: KIModel, num_steps: int) -> None:
        self.model, self.num_steps = model, num_steps

    def prepare(self) -> None:
        """Nothing is done once."""

    def sample(
        self,
        observation: Observation,
        noise: Tensor,
        *,
        committed: Tensor | None = None,
        guidance: Guidance | None = None,
    ) -> Tensor:
        """See `Engine`; any number of rows."""
        device = self.model.device
        if guidance is not None:
            guidance = guidance.to(device)
        with torch.no_grad():
            return self.model.sample_actions(
                observation.to(device),
                noise=noise,
                num_steps=self.num_steps,
                committed=committed,
                guidance=guidance,
            )
