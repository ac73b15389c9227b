"""fairseq_synth: Synthesizer attention and other rethought Transformers for fairseq, through ``--user-dir``.

Importing the package makes fairseq run on current Python and torch (:mod:`fairseq_synth.compat`) and registers
the architectures. Importing it twice is harmless.
"""

from fairseq_synth import compat, errors

errors.install_excepthook()
compat.apply()

from fairseq_synth.models import transformer, transformer_lm  # noqa: E402,F401  (after compat: they register)

__version__ = "0.1.0"
