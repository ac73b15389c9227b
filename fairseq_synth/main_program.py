"""Which program this process runs: that decides what importing the package may do to the interpreter.

``fairseq-synth``   loads nothing by itself; its commands ask for what they need by ``fairseq_synth.setup()``
fairseq's commands  get everything, and errors in one line: ``sys.excepthook`` is theirs to set
anything else       (a notebook, a script, a test) gets the registrations, and keeps its hook and its logging
"""

import os
import sys
from types import FrameType
from typing import Optional


def is_fairseq_synth() -> bool:
    return main_program() in ("fairseq-synth", "fairseq_synth", "fairseq_synth.__main__")


def is_fairseq_command() -> bool:
    """fairseq-train and its kin, also as ``python -m fairseq_cli.train``, under torchrun, or in a spawned process."""
    name = main_program()
    return name.startswith("fairseq_cli.") or (name.startswith("fairseq-") and not is_fairseq_synth())


def main_program() -> str:
    """The module that ``python -m`` runs, or the name of the script without its ending. Empty where there is none."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name != "__main__":
        return str(spec.name)
    path = getattr(main, "__file__", None)
    if path is None:
        return _sought_by_runpy()
    if os.path.basename(path) == "__main__.py":  # inside the executable that pip makes on Windows
        path = os.path.dirname(path)
    folder, name = os.path.split(os.path.splitext(os.path.abspath(path))[0])
    return f"fairseq_cli.{name}" if os.path.basename(folder) == "fairseq_cli" else name


def _sought_by_runpy() -> str:
    """``python -m`` imports the package of a module before there is a main program: then it is still being sought."""
    frame: Optional[FrameType] = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "_run_module_as_main":
            return str(frame.f_locals.get("mod_name", ""))
        frame = frame.f_back
    return ""
