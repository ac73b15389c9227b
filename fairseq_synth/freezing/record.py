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

from fairseq_synth.errors import UsageError
from fairseq_synth.freezing.digest import digest

KEY = "frozen_record"


def encode(record: Mapping[str, Any]) -> Tensor:
    return torch.tensor(list(zlib.compress(json.dumps(record).encode())))


def decode(tensor: Optional[Tensor]) -> Optional[Dict[str, Any]]:
    """The record, None where there is none. Raises UsageError for one that cannot be read."""
    if tensor is None:
        return None
    try:
        return json.loads(zlib.decompress(bytes(tensor.tolist())))
    except (ValueError, zlib.error) as error:
        raise UsageError(
            f"the checkpoint's record of frozen parameters ({KEY}) is damaged: copy the file again"
        ) from error


def verify(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Raises UsageError unless ``tensors`` hold what was frozen, bit for bit."""
    missing = [name for name in record["names"] if name not in tensors]
    if missing:
        raise UsageError(f"the checkpoint says that {missing[0]} is frozen, but does not hold it; copy the file again")
    found = digest({name: tensors[name] for name in record["names"]})
    if found != record["digest"]:
        raise UsageError(
            f"the checkpoint's frozen tensors ({record['freeze']}) are not those that were saved: SHA-256 "
            f"{found[:12]}... instead of {record['digest'][:12]}...: the file was damaged or changed (average "
            f"checkpoints with fairseq-synth average)"
        )
