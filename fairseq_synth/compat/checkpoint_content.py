"""What is in a checkpoint: of the kinds that fairseq writes, no larger than it looks, and as it was written.

The digests of a checkpoint's tensors, part by part in the order of the file, are an attribute of the weights' ordered
dict, as PyTorch's own ``_metadata`` is. Stock fairseq does not look at it. Whatever makes new weights (fairseq's
averaging script, a moving average that is saved as a checkpoint) makes a new dict, without digests: they never tell of
other weights than those beside them.
"""

import hashlib
import os
import zipfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch
from fairseq import checkpoint_utils
from torch import Tensor

from fairseq_synth.errors import UsageError, printable

from .patching import replace

ATTRIBUTE = "tensor_digests"
# "0": digests are neither written nor compared
VARIABLE = "FAIRSEQ_SYNTH_DIGESTS"
# how much larger than the bytes in the file tensors may look: tied weights and expanded buffers do
EXPANSION = 16
DIGITS = 32
# values in a checkpoint's dicts and lists: a list may hold another twice, that another twice ...
LARGEST = 10_000_000


def store_tensor_digests() -> bool:
    """A bit that flips in stored weights loads silently: torch checks no checksum (every version).

    A digest of every tensor is stored with the weights, and compared whenever fairseq loads them.
    """
    replace(checkpoint_utils, "torch_persistent_save", _sealing)
    replace(checkpoint_utils, "load_checkpoint_to_cpu", _naming_the_file)
    return True


def refuse_strange_checkpoints() -> bool:
    """A checkpoint that holds anything but a model ends in a traceback, anywhere (every version)."""
    replace(checkpoint_utils, "_upgrade_state_dict", _checking_content)
    return True


def _sealing(stock: Callable) -> Callable:
    """Where a checkpoint is written: before, its parts are still being put together."""

    def torch_persistent_save(obj: Any, *args: Any, **kwargs: Any) -> Any:
        holds_model = isinstance(obj, dict) and isinstance(obj.get("model"), dict)
        return stock(seal(obj) if holds_model else obj, *args, **kwargs)

    return torch_persistent_save


def _naming_the_file(stock: Callable) -> Callable:
    def load_checkpoint_to_cpu(path: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            check_file(path)
            return stock(path, *args, **kwargs)
        except UsageError as error:
            raise UsageError(f"checkpoint {printable(path)}: {error}") from error

    return load_checkpoint_to_cpu


def _checking_content(stock: Callable) -> Callable:
    def upgrade(state: Any) -> Any:
        check_content(state)
        return stock(state)

    return upgrade


# ---------------------------------------------------------------------- content
def check_content(state: Any) -> None:
    """Raises UsageError unless ``state`` holds a model, of the size of its file, with the tensors that were written."""
    weights = state.get("model") if isinstance(state, dict) else None
    if not isinstance(weights, dict) or not weights:
        kind = type(state).__name__ if not isinstance(state, dict) else f"model of type {type(weights).__name__}"
        raise UsageError(f"holds no model ({kind}); give a checkpoint that fairseq-train wrote")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not (isinstance(tensor, Tensor) or name.endswith("_extra_state")):
            raise UsageError(
                f"{printable(name, 100)} in the model is a {type(tensor).__name__} where a tensor belongs: the file is "
                f"damaged, or no checkpoint of fairseq"
            )
    _check_size(dict(tensors_of(state)))
    verify(state)


def _check_size(tensors: Dict[str, Tensor]) -> None:
    """One number may stand for 10^12 equal ones."""
    stored = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    look = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if look > EXPANSION * sum(stored.values()) + 2**20:
        largest = max(tensors, key=lambda name: tensors[name].numel())
        raise UsageError(
            f"{printable(largest, 100)} has {list(tensors[largest].shape)} elements, but the file holds "
            f"{sum(stored.values()):,} bytes of tensors: it is damaged, or made to fill the memory"
        )


def tensors_of(state: Any) -> Iterator[Tuple[str, Tensor]]:
    """(place, tensor) of every dense tensor in nested dicts and lists, such as model.encoder.layers.0.fc1.weight."""
    left, looked = [("", state)], 0
    while left:
        place, value = left.pop()
        looked += 1
        if looked > LARGEST:
            raise UsageError(f"holds more than {LARGEST:,} values: lists in lists, made to take for ever")
        if isinstance(value, Tensor):
            if value.layout == torch.strided and not value.is_quantized:
                yield place, value
        elif isinstance(value, (dict, list, tuple)):
            items = value.items() if isinstance(value, dict) else enumerate(value)
            left += [(f"{place}.{key}" if place else str(key), inner) for key, inner in items]


# ---------------------------------------------------------------------- digests
def seal(state: Dict[str, Any]) -> Dict[str, Any]:
    """``state`` with a digest of every tensor in it. For what is about to be written."""
    if os.environ.get(VARIABLE) == "0":
        return state
    weights = state["model"]
    if not isinstance(weights, OrderedDict):
        weights = state["model"] = OrderedDict(weights)
    setattr(weights, ATTRIBUTE, {part: "".join(_digests(dict(tensors_of(state[part])))) for part in state})
    return state


def verify(state: Dict[str, Any]) -> None:
    """Raises UsageError, which names the tensor, unless every tensor is the one that was written.

    Files without digests (older, of stock fairseq, averaged by its script) pass, and so does a part that came later.
    """
    written = getattr(state["model"], ATTRIBUTE, None)
    if not isinstance(written, dict) or os.environ.get(VARIABLE) == "0":
        return
    for part in sorted(set(written) & set(state), key=lambda part: part != "model"):
        found = dict(tensors_of(state[part]))
        digests = _digests(found)
        expected = [str(written[part])[i : i + DIGITS] for i in range(0, len(str(written[part])), DIGITS)]
        changed = [name for name, one, other in zip(found, digests, expected) if one != other]
        if changed or len(expected) != len(found):
            what = f"{changed[0]} is not what was written" if changed else "does not hold what was written"
            raise UsageError(
                f"{printable(part, 40)}: {printable(what, 150)} ({len(changed)} of {len(expected)} tensors have "
                f"another SHA-256, {len(found)} are there): the file was damaged, copy it again, or changed on "
                f"purpose, then load it with {VARIABLE}=0"
            )


def _digests(tensors: Dict[str, Tensor]) -> List[str]:
    """In their order. hashlib lets go of the interpreter: several at once; tied ones once."""
    keys = [
        (t.untyped_storage().data_ptr(), t.storage_offset(), t.shape, t.stride(), t.dtype) for t in tensors.values()
    ]
    different = dict(zip(keys, tensors.values()))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        made = dict(zip(different, threads.map(_digest, different.values())))
    return [made[key] for key in keys]


def _digest(tensor: Tensor) -> str:
    """SHA-256 (its first half) of element type, shape and bytes, half precision as the float32 it is stored in."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype in (torch.float16, torch.bfloat16):
        tensor = tensor.float()
    total = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
    total.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()[:DIGITS]


def check_file(path: Any) -> None:
    """Options and names lie in one record of the zip file, whose checksum torch does not look at either.

    Raises UsageError where it is another. Says nothing of other files: reading them does.
    """
    if os.environ.get(VARIABLE) == "0" or not os.path.isfile(str(path)):
        return
    try:
        with zipfile.ZipFile(str(path)) as archive:
            names = [name for name in archive.namelist() if name.endswith((".pkl", "/version"))]
            damaged = [name for name in names if not _whole(archive, name)]
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, ValueError, EOFError):
        return  # an older format, or torn: torch says what is wrong
    if damaged and len(damaged) < len(names):  # all: written without checksums
        raise UsageError(
            f"its options and names are not what was written (checksum of {printable(damaged[0], 60)}): the file was "
            f"damaged; copy it again, or load it with {VARIABLE}=0"
        )


def _whole(archive: zipfile.ZipFile, name: str) -> bool:
    if archive.getinfo(name).file_size > os.path.getsize(str(archive.filename)):  # compressed: not torch's
        return True
    try:
        return archive.read(name) is not None
    except zipfile.BadZipFile:
        return False
