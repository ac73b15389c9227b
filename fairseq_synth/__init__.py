"""fairseq_synth: Synthesizer attention and other rethought Transformers for fairseq, through ``--user-dir``.

Importing the package makes fairseq run on current Python and torch (:mod:`fairseq_synth.compat`) and registers
the architectures. Importing it twice is harmless.
"""

try:
    import fairseq  # noqa: F401
except Exception as error:
    from fairseq_synth.inspection.environment import explain_import

    raise ImportError(explain_import(error)) from error

from fairseq_synth import compat, errors  # noqa: E402

errors.install_excepthook()
compat.apply()

# after compat: they register themselves
from fairseq_synth.freezing import hooks  # noqa: E402
from fairseq_synth.models import sequential_lm, transformer, transformer_lm  # noqa: E402,F401
from fairseq_synth.tasks import streaming_lm  # noqa: E402,F401

hooks.install()

__version__ = "0.1.0"
