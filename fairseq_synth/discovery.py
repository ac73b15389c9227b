"""Folders whose every file counts: nothing has to be listed by hand."""

import importlib
import pkgutil
from types import ModuleType
from typing import Iterable, List


def import_modules(package: str, path: Iterable[str]) -> List[ModuleType]:
    """Import every module in the folders ``path`` of ``package``, in the order of their names.

    Files whose name starts with an underscore are left out.
    """
    names = sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))
    return [importlib.import_module(f"{package}.{name}") for name in names]
