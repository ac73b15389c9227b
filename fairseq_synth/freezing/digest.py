"""A digest of tensors: equal bytes, names, types and shapes give equal digests, on every machine."""

import hashlib
from typing import Dict, Mapping

import torch
from torch import Tensor


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal, of names and tensors, in the order of the names.

    Covered are name, element type, shape and bytes: a tensor that moved by one bit, or changed its name, gives
    another digest. The device and the layout in memory do not count. float16 and bfloat16 count as the float32
    numbers that they equal: fairseq keeps them so in checkpoints.
    """
    return combine({name: tensor_digest(tensor) for name, tensor in tensors.items()})


def combine(digests: Mapping[str, str]) -> str:
    """The digest of several tensors from their own (name -> tensor_digest)."""
    return hashlib.sha256("".join(f"{name}\0{digests[name]}\n" for name in sorted(digests)).encode()).hexdigest()


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of element type, shape and bytes, where half precision counts as float32."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    kind = str(tensor.dtype).replace("torch.", "")
    total = hashlib.sha256(f"{kind}\0{','.join(map(str, tensor.shape))}\0".encode())
    total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def moved(before: Mapping[str, str], after: Mapping[str, str]) -> Dict[str, str]:
    """{name: what happened} for tensors whose digests differ."""
    changes = {name: "is missing" for name in before if name not in after}
    changes.update({name: "is new" for name in after if name not in before})
    changes.update({name: "moved" for name in before if name in after and before[name] != after[name]})
    return changes
