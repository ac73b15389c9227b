"""Reading fairseq's checkpoints."""

import collections
import importlib
import typing
from argparse import Namespace
from typing import Any, List

import numpy as np
import torch

from .patching import torch_version


def allow_fairseq_checkpoints() -> bool:
    """torch >= 2.6 refuses the Namespace and numpy objects inside fairseq's own checkpoints.

    Items 1, 2 and 3; needed by fairseq 0.12.2 and later releases that call torch.load without
    weights_only (upstream main passes weights_only=False, which runs whatever code a file holds).
    The safe loader stays on: the plain data holders that fairseq writes are added to its
    allow-list, nothing else.
    """
    if torch_version() < (2, 6):  # weights_only is off, and (function, "name") pairs are unknown
        return False
    torch.serialization.add_safe_globals(checkpoint_globals() + broadcast_globals())
    return True


def checkpoint_globals() -> List[Any]:
    """What fairseq pickles into checkpoint files.

    None of these runs code chosen by the file. `Namespace` has no `__setstate__`: its attributes
    are filled with already checked objects. `_reconstruct` and `scalar` build arrays from a dtype
    and bytes, `ndarray` and the dtype classes fill themselves from shape, dtype and bytes. The
    object dtype is left out, as pickled objects have no place in a meter. Absent on purpose:
    everything callable with side effects (getattr, eval, operator...).
    """
    multiarray = _numpy_multiarray()
    allowed: List[Any] = [Namespace, np.ndarray, np.dtype]
    # The unpickler checks the class of each dtype instance too: numpy.dtypes.Int64DType and its
    # kin. PyTorch's own get_unsafe_globals_in_checkpoint() does not report them.
    allowed += sorted({type(np.dtype(code)) for code in "?bBhHiIlLqQefdg"}, key=lambda cls: cls.__name__)
    for name in ("_reconstruct", "scalar"):
        function = getattr(multiarray, name)
        # numpy 1 wrote numpy.core, numpy 2 writes numpy._core; files of both load with either.
        for package in ("numpy._core", "numpy.core"):
            allowed.append((function, f"{package}.multiarray.{name}"))
    return allowed


def broadcast_globals() -> List[Any]:
    """What rank 0 pickles for the other ranks on resume; files of 2020-21 hold DictConfigs too.

    The omegaconf classes hold values; their interpolations are resolved later, by omegaconf, as for
    any config. The builtins and `typing.Any` appear as the declared types of config nodes; calling
    them makes plain data.
    """
    from fairseq.distributed.utils import _TensorPlaceholder
    from omegaconf import DictConfig, ListConfig, base, nodes

    allowed: List[Any] = [DictConfig, ListConfig, _TensorPlaceholder, collections.defaultdict]
    allowed += [dict, list, tuple, int, float, str, bool, (typing.Any, "typing.Any")]
    allowed += _present(base, "Metadata", "ContainerMetadata")
    allowed += _present(nodes, "AnyNode", "IntegerNode", "FloatNode", "StringNode", "BooleanNode", "EnumNode")
    return allowed


def _numpy_multiarray():
    numpy_core = "numpy._core" if int(np.__version__.split(".")[0]) >= 2 else "numpy.core"
    return importlib.import_module(f"{numpy_core}.multiarray")


def _present(module, *names):
    return [getattr(module, name) for name in names if hasattr(module, name)]
