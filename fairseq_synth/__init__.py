"""fairseq_synth: Synthesizer attention and other rethought Transformers for fairseq, through ``--user-dir``.

Importing the package makes fairseq run on current Python and torch (:mod:`fairseq_synth.compat`) and registers
the architectures. Importing it twice is harmless.
"""

import logging
import os
import sys

# `fairseq-synth` prints what was asked for, not what fairseq says while imported ("-m": python -m fairseq_synth)
_quiet = os.path.basename((sys.argv or [""])[0]) in ("fairseq-synth", "fairseq-synth.exe", "-m")
if _quiet:
    logging.disable(logging.INFO)

try:
    import fairseq  # noqa: F401
except Exception as error:
    from fairseq_synth.inspection.environment import explain_import

    raise ImportError(explain_import(error)) from error

from fairseq_synth import compat, errors  # noqa: E402

errors.install_excepthook()
compat.apply()

# after compat: they register themselves
from fairseq_synth.criterions import chunked_cross_entropy  # noqa: E402,F401
from fairseq_synth.freezing import hooks  # noqa: E402
from fairseq_synth.models import sequential_lm, transformer, transformer_lm  # noqa: E402,F401
from fairseq_synth.tasks import streaming_lm  # noqa: E402,F401

hooks.install()
if _quiet:
    logging.disable(logging.NOTSET)

__version__ = "0.1.0"
