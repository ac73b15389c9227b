"""The invariants every attention must keep, as code that users can run on a scorer of their own.

``fairseq-synth check SPEC`` runs them all; the test suite runs them over the registry.
"""

from fairseq_synth.checks import invariants, training  # noqa: F401  (fill the registry)
from fairseq_synth.checks.case import Case
from fairseq_synth.checks.registry import INVARIANTS, Outcome, check_one, run

__all__ = ["INVARIANTS", "Case", "Outcome", "check_one", "run"]
