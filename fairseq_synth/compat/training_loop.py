"""fairseq's training loop, fairseq_cli/train.py: the one part of fairseq that may run under another name."""

import os
import sys
from types import ModuleType
from typing import Callable, List

from .patching import replace


def copies() -> List[ModuleType]:
    """The loop as it is loaded: as fairseq_cli.train, as __main__ (python -m), or both. Not before it is loaded."""
    found: List[ModuleType] = []
    for name in ("fairseq_cli.train", "__main__", "__mp_main__"):
        module = sys.modules.get(name)
        file = os.path.abspath(getattr(module, "__file__", None) or "")
        if module and module not in found and file.endswith(os.path.join("fairseq_cli", "train.py")):
            found.append(module)
    return found


def replace_in_loop(name: str, make: Callable[[Callable], Callable]) -> None:
    """`replace` in every copy of the loop; to be called once the loop runs (from load_checkpoint)."""
    for module in copies():
        replace(module, name, make)
