"""What a checkpoint says of its frozen tensors: one entry of the state dict.

The record is a dict of plain types. It travels with the weights, as a tensor: it loads with ``weights_only=True``,
and the bytes are kept as int64, which fairseq's averaging script adds up and divides without losing them.

    freeze   what --freeze said
    names    the frozen parameters, as in frozen_names()
    digest   SHA-256 of these tensors as they are in this file
"""

import json
import zlib
from typing import Any, Dict, Mapping, Optional

import torch
from torch import Tensor

from fairseq_synth.errors import UsageError, printable
from fairseq_synth.freezing.digest import digest

KEY = "frozen_record"
# bytes of JSON: names of 300,000 tensors. A file of 8 MB could unzip to 8 GiB.
LARGEST = 32 * 2**20


def encode(record: Mapping[str, Any]) -> Tensor:
    return torch.tensor(list(zlib.compress(json.dumps(record).encode())))


def unpack(tensor: Any) -> Dict[str, Any]:
    """What :func:`encode` packed, whatever the dict holds. Raises ValueError for anything else."""
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.int64 or tensor.dim() != 1 or len(tensor) > LARGEST:
        raise ValueError("not a tensor of bytes")
    unzip = zlib.decompressobj()
    try:
        text = unzip.decompress(bytes(tensor.tolist()), LARGEST)
        if not unzip.eof:
            raise ValueError(f"cut off, or more than {LARGEST} bytes")
        found = json.loads(text)
    except (zlib.error, RecursionError) as error:
        raise ValueError(printable(error)) from error
    if not isinstance(found, dict):
        raise ValueError("not a dict")
    return found


def decode(tensor: Optional[Tensor]) -> Optional[Dict[str, Any]]:
    """The record, None where there is none. Raises UsageError for one that cannot be read."""
    if tensor is None:
        return None
    try:
        found = {"freeze": None, "names": [], "digest": "", **unpack(tensor)}
        if not isinstance(found["names"], list) or not all(isinstance(name, str) for name in found["names"]):
            raise ValueError("names are no names")
    except ValueError as error:
        raise UsageError(
            f"the checkpoint's record of frozen parameters ({KEY}) is damaged: copy the file again"
        ) from error
    return found


def held(state: Mapping[str, Any]) -> Optional[Dict[str, Any]]:
    """The record of a state dict, None for one without. Raises UsageError for an entry that is none, such as None."""
    if KEY not in state:
        return None
    return decode(torch.zeros(0) if state[KEY] is None else state[KEY])


def verify(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raises UsageError unless ``tensors`` hold what was frozen, bit for bit."""
    missing = [name for name in record["names"] if name not in tensors]
    if missing:
        raise UsageError(
            f"the checkpoint says that {printable(missing[0])} is frozen, but does not hold it; copy the file again"
        )
    found = digest({name: tensors[name] for name in record["names"]})
    if found != record["digest"]:
        raise UsageError(
            f"the checkpoint's frozen tensors ({printable(record['freeze'])}) are not those that were saved: SHA-256 "
            f"{found[:12]}... instead of {printable(record['digest'], 12)}...: the file was damaged or changed "
            f"(average checkpoints with fairseq-synth average)"
        )
