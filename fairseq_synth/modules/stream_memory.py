"""What a model remembers of the blocks it has read: it belongs to one pass over a text, never to the model."""

from typing import Any, Dict, List, NamedTuple, Optional

import torch
from torch import Tensor


class Remembered(NamedTuple):
    """states: per layer, t x B x C, detached (t differs between layers); pads: B x t, True at pads, or None."""

    states: List[Tensor]
    pads: Optional[Tensor]


class StreamMemory:
    """Travels with the batches of one iterator (as ``net_input["memory"]``) and is written by the model.

    Each pass over a data set has one of its own, so training, validation and a second evaluation do not see each
    other's text and may have different batch sizes. Several models (an ensemble) keep apart by their names in it.

    A checkpoint holds what :meth:`state_dict` returns. The names of the models are not in it, as they change from
    process to process: the models get back what is theirs in the order in which they first wrote.
    """

    def __init__(self) -> None:
        self._remembered: Dict[str, Remembered] = {}
        self._restored: List[Remembered] = []  # owners not known yet

    def read(self, owner: str) -> Optional[Remembered]:
        if owner not in self._remembered and self._restored:
            self._remembered[owner] = self._restored.pop(0)
        return self._remembered.get(owner)

    def write(self, owner: str, remembered: Remembered) -> None:
        self._remembered[owner] = remembered

    def state_dict(self) -> List[Dict[str, Any]]:
        """Per model: its states and pads as CPU tensors that share no storage with anything."""
        return [
            {"states": [_on_cpu(state) for state in states], "pads": None if pads is None else _on_cpu(pads)}
            for states, pads in self._remembered.values()
        ]

    def load_state_dict(self, state: List[Dict[str, Any]]) -> None:
        """Forget everything but `state`, which stays on the CPU until :meth:`to`."""
        self._remembered = {}
        self._restored = [Remembered(list(one["states"]), one["pads"]) for one in state]

    def to(self, device: torch.device) -> None:
        """Bring what was restored to the device of the model. What a model wrote is there already."""
        self._restored = [
            Remembered([state.to(device) for state in states], None if pads is None else pads.to(device))
            for states, pads in self._restored
        ]


def _on_cpu(tensor: Tensor) -> Tensor:
    """A slice would take the whole of its storage into the file."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).cpu()
