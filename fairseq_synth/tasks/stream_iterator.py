"""The blocks of parallel streams in order, with what the model remembers of those before, in checkpoints too.

The memory was made by the weights of earlier updates, so it cannot be computed again: every worker has its own, and
all of them go into the checkpoint, unless it is one of the end of a pass.
"""

import logging
from typing import Any, Dict, Iterator, List, Optional

import torch
from fairseq.data import iterators
from fairseq.distributed import utils as distributed_utils

from fairseq_synth.modules.stream_memory import StreamMemory

logger = logging.getLogger(__name__)


class StreamIterator(iterators.EpochBatchIterator):
    """fairseq's epoch iterator over Streams; every pass gives its batches a StreamMemory of its own."""

    def __init__(self, worker: int, workers: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.worker, self.workers = worker, workers
        self._memory = StreamMemory()
        self._gathered: List[Any] = []  # state of the memory of every worker; on the first worker

    def _get_iterator_for_epoch(
        self, epoch: int, shuffle: bool, fix_batches_to_gpus: bool = False, offset: int = 0
    ) -> Any:
        batches = super()._get_iterator_for_epoch(epoch, shuffle, fix_batches_to_gpus, offset)
        if batches is None:
            return None
        self._memory = StreamMemory()
        return iterators.CountingIterator(_with(self._memory, batches), start=batches.n, total=len(batches))

    # ------------------------------------------------------------------ in checkpoints
    def gather_state(self) -> None:
        """All workers call this (see compat.saving) before the first of them calls :meth:`state_dict`."""
        self._gathered = []
        if not self.end_of_epoch():
            self._gathered = _gather(self._memory.state_dict(), self.worker, self.workers)

    def state_dict(self) -> Dict[str, Any]:
        return {**super().state_dict(), "streams": self._shape(), "memory": self._gathered}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if not state_dict.get("iterations_in_epoch", 0):
            return  # a new pass
        theirs = state_dict.get("streams")
        if theirs == self._shape():
            self._memory.load_state_dict(state_dict["memory"][self.worker])
            return
        now = _words(self._shape())
        why = "is of a version that did not save it" if theirs is None else f"has {_words(theirs)}; this run: {now}"
        logger.warning("the memory of the streams starts empty, as the checkpoint %s", why)

    def _shape(self) -> Dict[str, int]:
        streams = self.dataset
        return {"workers": self.workers, "rows": streams.rows, "block": streams.block, "length": streams.length}


def _with(memory: StreamMemory, batches: Any) -> Iterator[Dict[str, Any]]:
    for batch in batches:
        batch["net_input"]["memory"] = memory
        yield batch


def _gather(own: List[Dict[str, Any]], worker: int, workers: int) -> List[Any]:
    """Of every worker, on the first one; layer by layer, as a memory may be large."""
    if workers == 1:
        return [own]
    group, first = distributed_utils.get_data_parallel_group(), worker == 0
    everyone: List[Any] = [[] for _ in range(workers)]
    for one in own:
        parts = [_gather_object(part, workers, first, group) for part in (*one["states"], one["pads"])]
        for i, state in enumerate(everyone if first else []):
            *states, pads = (part[i] for part in parts)
            state.append({"states": states, "pads": pads})
    return everyone


def _gather_object(value: Any, workers: int, first: bool, group: Any) -> List[Optional[Any]]:
    received: List[Optional[Any]] = [None] * workers
    torch.distributed.gather_object(value, received if first else None, dst=0, group=group)
    return received


def _words(shape: Dict[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in shape.items())
