"""Binarised data is looked at before it is used: two files that agree, and tokens that the dictionary has."""

import os
import struct
from typing import Any, Callable, Optional

import numpy as np
from fairseq.data import LanguagePairDataset, indexed_dataset
from fairseq.trainer import Trainer

from fairseq_synth.errors import UsageError, printable

from .patching import replace

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQ")
# bytes of tokens that are compared with the dictionary
LOOKED_AT = 2**30
FIX = "copy it again, or run fairseq-preprocess again"


def refuse_damaged_data() -> bool:
    """Torn or foreign .bin and .idx files end in any error, or in other words than were written (every version)."""
    replace(indexed_dataset, "make_dataset", _checking)
    return True


def refuse_missing_targets() -> bool:
    """Training on a split without a target side ends in a TypeError of the decoder (every version)."""
    replace(Trainer, "get_train_iterator", _with_targets)
    replace(Trainer, "get_valid_iterator", _with_targets)
    return True


def _with_targets(stock: Callable) -> Callable:
    def get_iterator(self: Any, *args: Any, **kwargs: Any) -> Any:
        iterator = stock(self, *args, **kwargs)
        for name, dataset in self.task.datasets.items():
            if isinstance(dataset, LanguagePairDataset) and dataset.tgt is None:
                raise UsageError(
                    f"split '{printable(name)}' has no target side, which training and validation need: give "
                    f"fairseq-preprocess both languages"
                )
        return iterator

    return get_iterator


def _checking(stock: Callable) -> Callable:
    def make_dataset(path: Any, impl: Any, *args: Any, dictionary: Any = None, **kwargs: Any) -> Any:
        if impl in ("mmap", "cached", "lazy") and os.path.isfile(f"{path}.idx") and os.path.isfile(f"{path}.bin"):
            problem = _problem(str(path), dictionary)
            if problem:
                raise UsageError(f"{printable(path)}: {problem}")
        return stock(path, impl, *args, dictionary=dictionary, **kwargs)

    return make_dataset


def _problem(path: str, dictionary: Any) -> Optional[str]:
    """What is wrong with path.idx and path.bin; None for files of other formats, and for those that are right."""
    with open(f"{path}.idx", "rb") as file:
        header = file.read(HEADER.size)
    if header[:8] in (b"TNTIDX\x00\x00", b"HUFFIDX\x00"):
        return None
    if len(header) < HEADER.size or not header.startswith(MAGIC):
        return f"its .idx file is torn, or no index that fairseq-preprocess wrote; {FIX}"
    _, version, code, sentences = HEADER.unpack(header)
    dtype = indexed_dataset._code_to_dtype.get(code)
    size = os.path.getsize(f"{path}.idx")
    if version != 1 or dtype is None or size != HEADER.size + 12 * sentences:
        return f"its .idx file is torn: {size:,} bytes for {sentences:,} sentences; {FIX}"
    return _disagreement(path, np.dtype(dtype), sentences, dictionary)


def _disagreement(path: str, dtype: np.dtype, sentences: int, dictionary: Any) -> Optional[str]:
    """Where the two files, or the tokens and the dictionary, do."""
    index = (
        np.memmap(f"{path}.idx", mode="r", offset=HEADER.size, dtype=np.uint8) if sentences else np.zeros(0, np.uint8)
    )
    sizes, starts = index[: 4 * sentences].view("<i4"), index[4 * sentences :].view("<i8")
    ends = starts + sizes.astype(np.int64) * dtype.itemsize
    size = os.path.getsize(f"{path}.bin")
    if sentences and (sizes.min() < 0 or starts[0] != 0 or (starts[1:] != ends[:-1]).any() or ends[-1] != size):
        return (
            f"its .idx and .bin files do not fit ({size:,} bytes of tokens, the index ends at {int(ends[-1]):,}); {FIX}"
        )
    if dictionary is None or size < dtype.itemsize or dtype.kind not in "iu":
        return None
    tokens = np.memmap(f"{path}.bin", mode="r", dtype=dtype, shape=(min(size, LOOKED_AT) // dtype.itemsize,))
    smallest, largest = int(tokens.min()), int(tokens.max())
    if smallest < 0 or largest >= len(dictionary):
        return (
            f"holds token {smallest if smallest < 0 else largest}, its dictionary has {len(dictionary)}: one of the "
            f"two is damaged or another training's; run fairseq-preprocess with --srcdict and --tgtdict of the model"
        )
    return None
