"""fairseq_synth: Synthesizer attention and other rethought Transformers for fairseq, through ``--user-dir``.

Importing the package makes fairseq run on current Python and torch (:mod:`fairseq_synth.compat`) and registers the
architectures, tasks and optimizers. Importing it twice is harmless. What else it may do depends on
:mod:`fairseq_synth.main_program`.
"""

from fairseq_synth import main_program

__all__ = ["setup"]
__version__ = "0.1.0"


def setup() -> None:
    """What the import does everywhere but in ``fairseq-synth``, whose commands call this. Twice is harmless.

    Raises InstallationError, an ImportError with the fix, where fairseq or what it needs cannot be imported.
    """
    from fairseq_synth import registration

    registration.load()


if main_program.is_fairseq_command():
    from fairseq_synth import errors

    errors.install_excepthook()
if not main_program.is_fairseq_synth():
    setup()
