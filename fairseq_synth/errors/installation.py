"""Why something cannot be imported, and what to do about it. Needs nothing but Python."""

import contextlib
import os
import sys
from typing import Any, Iterator, Optional, Tuple

FAIRSEQ_ENDS = (3, 11)  # fairseq 0.12.2 cannot be imported from this Python on

# module -> what pip calls it, where that differs
PACKAGES = {"hydra": "hydra-core", "antlr4": "antlr4-python3-runtime", "yaml": "PyYAML", "sklearn": "scikit-learn"}


class InstallationError(ImportError):
    """fairseq, or something it needs, cannot be imported. The message is one line with the fix."""


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Around an import of fairseq. Raises InstallationError for whatever it raises."""
    try:
        yield
    except Exception as error:
        raise InstallationError(explain_import(error)) from error


def explain_import(error: BaseException, module: str = "fairseq") -> str:
    """Why ``module`` cannot be imported, in one line with the fix."""
    return ": ".join(cause_and_fix(error, module))


def cause_and_fix(error: BaseException, module: str = "fairseq") -> Tuple[str, str]:
    first = (str(error).strip().splitlines() or [""])[0]
    fix = fairseq_install() if module == "fairseq" else f"pip install {module}"
    hiding = _hiding()
    if hiding:
        return f"{hiding} hides a module of Python's own, so that {module} cannot be imported ({first})", "rename it"
    missing = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing and error.name == module:  # type: ignore[attr-defined]
        return f"{module} is not installed in {sys.executable}", fix
    if module == "fairseq" and "mutable default" in first and sys.version_info >= FAIRSEQ_ENDS:
        version = version_text(sys.version_info)
        return f"fairseq 0.12.2 cannot run on Python {version}", f"pip uninstall fairseq, then {fix}"
    if missing and missing != module:
        return f"{module} needs {missing}, which is not installed", f"pip install {PACKAGES.get(missing, missing)}"
    return f"{module} cannot be imported ({type(error).__name__}: {first})", f"in a new environment, {fix}"


def _hiding() -> Optional[str]:
    """A user's file of the name of a standard module: the folder of the script comes first in sys.path."""
    library = os.path.realpath(os.path.dirname(os.__file__))
    standard = getattr(sys, "stdlib_module_names", None) or [name[:-3] for name in os.listdir(library)]  # Python < 3.10
    for folder in sys.path:
        place = os.path.realpath(folder or os.getcwd())
        if place.startswith(library) or not os.path.isdir(place):
            continue
        for name in standard:
            path = os.path.join(place, f"{name}.py")
            loaded = getattr(sys.modules.get(name), "__file__", None)
            if os.path.isfile(path) and os.path.realpath(loaded or path) == path:
                return path
    return None


def fairseq_install() -> str:
    """The command for this Python."""
    wanted = "fairseq-fixed" if sys.version_info >= FAIRSEQ_ENDS else "'pip<24.1' and then fairseq==0.12.2"
    return f"pip install {wanted}"


def version_text(version: Any) -> str:
    """sys.version_info as 3.11.7."""
    return ".".join(map(str, version[:3]))
