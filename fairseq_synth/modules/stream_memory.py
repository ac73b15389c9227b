"""What a model remembers of the blocks it has read: it belongs to one pass over a text, never to the model."""

from typing import Dict, List, NamedTuple, Optional

from torch import Tensor


class Remembered(NamedTuple):
    """states: per layer, t x B x C, detached (t differs between layers); pads: B x t, True at pads, or None."""

    states: List[Tensor]
    pads: Optional[Tensor]


class StreamMemory:
    """Travels with the batches of one iterator (as ``net_input["memory"]``) and is written by the model.

    Each pass over a data set has one of its own, so training, validation and a second evaluation do not see each
    other's text and may have different batch sizes. Several models (an ensemble) keep apart by their names in it.
    """

    def __init__(self) -> None:
        self._remembered: Dict[str, Remembered] = {}

    def read(self, owner: str) -> Optional[Remembered]:
        return self._remembered.get(owner)

    def write(self, owner: str, remembered: Remembered) -> None:
        self._remembered[owner] = remembered
