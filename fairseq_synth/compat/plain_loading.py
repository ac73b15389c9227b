"""torch.load for plain data, where PyTorch's own runs code: tensors, containers, numbers and text, nothing else.

A checkpoint is a zip file with a pickle, which names the objects it makes, and the bytes of every storage. Here Python
reads the zip file (checksums included), and the unpickler knows the few names of :mod:`checkpoints` alone. No function
of these has a side effect, and none gets more memory than the file has bytes.
"""

import collections
import io
import os
import pickle
import re
import zipfile
from argparse import Namespace
from typing import Any, Callable, Dict, Tuple

import numpy as np
import torch

from .checkpoints import broadcast_globals, checkpoint_globals
from .patching import replace, torch_version

# "1": files are trusted, and read as PyTorch reads them
VARIABLE = "FAIRSEQ_SYNTH_TRUST"
STORAGES = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
            "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool",
            "ComplexFloat": "complex64", "ComplexDouble": "complex128"}  # fmt: skip
SAFE_TORCH = (2, 10)


def read_plain_data_only() -> bool:
    """torch < 2.6 runs the code in a checkpoint; its weights_only was open until 2.5.1 and 2.9.1 (both CVEs).

    CVE-2025-32434 and CVE-2026-24747. torch.load is replaced where nothing else is asked for by pickle_module or
    weights_only=False.
    """
    if torch_version() >= SAFE_TORCH:
        return False
    replace(torch, "load", _plain)
    replace(torch.serialization, "load", _plain)
    return True


def _plain(stock: Callable) -> Callable:
    def load(f: Any, map_location: Any = None, pickle_module: Any = None, **kwargs: Any) -> Any:
        if os.environ.get(VARIABLE) == "1" or pickle_module is not None or kwargs.get("weights_only") is False:
            more = {} if pickle_module is None else {"pickle_module": pickle_module}
            return stock(f, map_location, **more, **kwargs)
        if isinstance(f, io.BytesIO) and not zipfile.is_zipfile(f):  # no file: a tensor that one process sends others
            f.seek(0)
            return stock(f, map_location, **kwargs)
        return read(f, map_location)

    return load


def read(file: Any, place: Any = None) -> Any:
    """The content of a file (a path or an open one), on the device ``place``, or else on the CPU.

    Raises pickle.UnpicklingError, also for what is no zip file: PyTorch's format of before 1.6.
    """
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError(
                f"not a zip file: it is torn, no checkpoint, or of PyTorch before 1.6; if you trust it, read it with "
                f"{VARIABLE}=1 and save it again"
            )
        with zipfile.ZipFile(file) as archive:
            device = place if isinstance(place, (str, torch.device)) else "cpu"
            return _Archive(archive, device).load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a pickle can fail in any way
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error


class _Archive:
    """storages: key -> bytes that were read."""

    def __init__(self, archive: zipfile.ZipFile, device: Any) -> None:
        self.archive, self.device = archive, device
        (self.pickle,) = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        self.size = sum(info.compress_size for info in archive.infolist())
        self.storages: Dict[str, Tuple[str, Any]] = {}

    def load(self) -> Any:
        order = self.pickle.replace("data.pkl", "byteorder")
        if order in self.archive.namelist() and self.archive.read(order) != b"little":
            raise ValueError("written on a machine of other byte order")
        with self.archive.open(self._info(self.pickle)) as file:
            return _Unpickler(file, self.storage).load()

    def storage(self, persistent: Any) -> Any:
        """What ("storage", type, key, location, number of elements) stands for."""
        kind, dtype, key, _, elements = persistent
        if kind != "storage" or not isinstance(dtype, torch.dtype) or type(elements) is not int:
            raise ValueError("unknown reference to a storage")
        if key not in self.storages:
            info = self._info(self.pickle.replace("data.pkl", f"data/{key}"))
            content = bytearray(info.file_size)
            file: Any
            with self.archive.open(info) as file:
                if file.readinto(content) != len(content) or file.read(1):
                    raise EOFError(f"storage {key} is cut off")
            there = torch.frombuffer(content, dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
            untyped = there.to(self.device).untyped_storage()
            self.storages[key] = (str(dtype), torch.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True))
        stored, storage = self.storages[key]
        if stored != str(dtype) or elements * torch.empty(0, dtype=dtype).element_size() != storage._nbytes():
            raise ValueError(f"storage {key} has not the size or type that the file says")
        return storage

    def _info(self, name: str) -> zipfile.ZipInfo:
        info = self.archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or not 0 <= info.file_size <= self.size:
            raise ValueError(f"{name} is compressed: not PyTorch's")
        return info


_Python: Any = vars(pickle)["_Unpickler"]


class _Unpickler(_Python):
    """Python's own, in Python: that in C lets a file set attributes of the classes it names."""

    dispatch = dict(_Python.dispatch)

    def __init__(self, file: Any, storage: Callable[[Any], Any]) -> None:
        super().__init__(file, encoding="utf-8")
        self.persistent_load = storage

    def find_class(self, module: str, name: str) -> Any:
        try:
            return allowed()[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"Weights only load failed: GLOBAL {module}.{name} is not allowed") from None

    def load_build(self) -> None:
        state = self.stack.pop()
        made: Any = self.stack[-1]
        plain = isinstance(made, (Namespace, collections.OrderedDict)) or type(made).__name__ == "_TensorPlaceholder"
        if plain and type(state) is dict:  # the last: of what one process sends the others
            made.__dict__.update(state)
        elif isinstance(made, np.dtype) and state[2:5] == (None, None, None):
            vars(np.dtype)["__setstate__"](made, state)  # byte order
        elif isinstance(made, np.ndarray) and isinstance(state[2], np.dtype):
            made.__setstate__(state)
        elif type(made).__module__.startswith("omegaconf.") and not isinstance(made, type):
            made.__setstate__(state) if hasattr(made, "__setstate__") else made.__dict__.update(state)
        else:
            raise pickle.UnpicklingError(f"Weights only load failed: GLOBAL {type(made).__name__} with a state")

    dispatch[pickle.BUILD[0]] = load_build


_ALLOWED: Dict[Tuple[str, str], Any] = {}


def allowed() -> Dict[Tuple[str, str], Any]:
    """(module, name) -> what the unpickler makes of it."""
    if not _ALLOWED:
        for entry in checkpoint_globals() + broadcast_globals():
            made, name = entry if isinstance(entry, tuple) else (entry, f"{entry.__module__}.{entry.__qualname__}")
            module, _, last = name.rpartition(".")
            _ALLOWED[module, last] = made
            if module == "builtins":
                _ALLOWED["__builtin__", last] = made  # of protocol 2
        for package in ("numpy._core", "numpy.core"):
            _ALLOWED[f"{package}.multiarray", "_reconstruct"] = _array
        _ALLOWED["numpy", "dtype"] = _dtype
        _ALLOWED["collections", "OrderedDict"] = collections.OrderedDict
        _ALLOWED["__builtin__", "set"] = _ALLOWED["builtins", "set"] = set
        _ALLOWED["_codecs", "encode"] = _ALLOWED["__builtin__", "bytes"] = _bytes
        _ALLOWED["__builtin__", "long"] = int
        _ALLOWED["torch", "Size"] = torch.Size
        _ALLOWED["torch", "device"] = torch.device
        _ALLOWED["torch._utils", "_rebuild_tensor_v2"] = _tensor
        _ALLOWED["torch._utils", "_rebuild_parameter"] = _parameter
        for kind, dtype in STORAGES.items():
            _ALLOWED["torch", f"{kind}Storage"] = getattr(torch, dtype)
            _ALLOWED["torch", dtype] = getattr(torch, dtype)
    return _ALLOWED


def _tensor(
    storage: Any, offset: int, size: Any, stride: Any, requires_grad: bool = False, *_more: Any
) -> torch.Tensor:
    """Without hooks. PyTorch checks that the storage is large enough."""
    tensor = torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))
    return tensor.requires_grad_() if requires_grad is True else tensor


def _parameter(data: torch.Tensor, requires_grad: bool, *_hooks: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, bool(requires_grad))


def _bytes(text: str = "", encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes written as {encoding}")
    return text.encode("latin1")


def _array(kind: Any, shape: Any, code: Any) -> Any:
    """An empty array, to be filled by its state."""
    if kind is not np.ndarray or tuple(shape) != (0,):
        raise ValueError("an array that is made in another way")
    return np.empty(0, dtype=np.int8)


def _dtype(code: Any, *_flags: Any) -> Any:
    """A copy: its byte order may be set. Of numbers only."""
    if not isinstance(code, str) or not re.fullmatch(r"[<>|=]?[biufc?]\d{0,2}", code):
        raise ValueError("an array of no numbers")
    return np.dtype(code, copy=True)
