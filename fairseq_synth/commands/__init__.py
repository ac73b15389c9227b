"""One module per command of ``fairseq-synth``. A file that is dropped into this folder is a command; it has

    NAME       what is typed: "diff-frozen"
    HELP       one line for ``fairseq-synth --help``
    ORDER      its place in that list, small numbers first (default: last)
    prepare    (words of the command line): for a command whose options depend on them; optional
    register   (parser): adds the command's arguments to its parser. Both are called for the command asked for alone
    run        (parsed arguments) -> exit status; raises UsageError for bad input

The list of all commands is made from every file, so a module imports at its top only what is light: what needs torch
is imported in ``run``, and what needs fairseq after ``fairseq_synth.setup()``.
"""

from types import ModuleType
from typing import Dict

from fairseq_synth import discovery

LAST = 1000


def commands() -> Dict[str, ModuleType]:
    """NAME -> module, in the order of the help."""
    modules = discovery.import_modules(__name__, __path__)
    modules.sort(key=lambda module: (getattr(module, "ORDER", LAST), module.NAME))
    return {module.NAME: module for module in modules}
