"""The text that pi0.5 reads: the instruction, and the state as integers."""

from __future__ import annotations

import numpy as np

STATE_BINS = 256


class PromptError(ValueError):
    """A prompt that cannot be made; the message names the value."""


def discretize_state(state: np.ndarray) -> np.ndarray:
    """Bins of a normalised state (D,): 256 equal ones over [-1, 1] by their lower edges, int64.

    A value below -1 gives -1 and one above 1 gives 255: states are not clipped.

    Raises:
        PromptError: a value that is not finite, or a state that is not a vector.
    """
    state = np.asarray(state)
    if state.ndim != 1:
        raise PromptError(f"state has shape {state.shape}; expected one vector")
    bad = np.flatnonzero(~np.isfinite(state))
    if len(bad):
        raise PromptError(f"state[{bad[0]}] is {state[bad[0]]}; give a finite state")
    edges = np.linspace(-1.0, 1.0, STATE_BINS + 1)[:-1]
    return np.digitize(state, bins=edges) - 1


def clean_instruction(instruction: str) -> str:
    """The instruction as the policy sees it: stripped, then underscores and newlines as spaces. Case stays."""
    return instruction.strip().replace("_", " ").replace("\n", " ")


def build_prompt(instruction: str, state: np.ndarray) -> str:
    """The prompt for an instruction and a normalised state (D,). Raises PromptError as `discretize_state`."""
    bins = " ".join(str(value) for value in discretize_state(state))
    return f"Task: {clean_instruction(instruction)}, State: {bins};\nAction: "
