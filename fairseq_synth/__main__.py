"""``python -m fairseq_synth`` is the ``fairseq-synth`` command."""

import sys

from fairseq_synth.cli import main

sys.exit(main())
