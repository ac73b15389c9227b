"""What loading the package does: fairseq and its repairs, then everything that this package registers in fairseq."""

import contextlib
import importlib.util
import logging
from typing import Iterator

from fairseq_synth import discovery
from fairseq_synth.errors.installation import explained

# fairseq's registries, by the folders' names; those that are there
FOLDERS = ("criterions", "optim", "tasks", "models")


def load() -> None:
    """Twice is harmless. Raises InstallationError where fairseq, or what it needs, cannot be imported."""
    with _logging_as_it_was(), explained():
        if importlib.util.find_spec("fairseq") is None:  # before anything else that may be missing with it
            raise ModuleNotFoundError("No module named 'fairseq'", name="fairseq")
        from fairseq_synth import compat

        compat.noise.hush_known_warnings()  # some are fairseq's first words
        import fairseq  # noqa: F401
    compat.apply()
    for module in ("freezing.hooks", "seeded.hooks"):  # after compat, whose seams they use
        importlib.import_module(f"fairseq_synth.{module}")
    for folder in FOLDERS:
        name = f"fairseq_synth.{folder}"
        if importlib.util.find_spec(name) is not None:
            discovery.import_modules(name, importlib.import_module(name).__path__)


@contextlib.contextmanager
def _logging_as_it_was() -> Iterator[None]:
    """fairseq configures the root logger while it is imported, and tells of what is not installed."""
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, root.manager.disable
    logging.disable(max(disabled, logging.INFO))
    try:
        yield
    finally:
        logging.disable(disabled)
        root.handlers[:] = handlers
        root.setLevel(level)
