"""What an invariant is, and the runner that compares its error with its tolerance."""

from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Tuple

from fairseq_synth.checks.case import Case

ALL_SIDES = ("encoder", "decoder", "cross")
EXACT = 1e-9  # float64, unit-scale inputs


class Outcome(NamedTuple):
    """What an invariant found. error is None where it did not apply; detail says why, or what failed."""

    name: str
    side: str
    error: Optional[float]
    tolerance: float
    detail: str = ""

    @property
    def passed(self) -> bool:
        return self.error is None or self.error <= self.tolerance


class Invariant(NamedTuple):
    name: str
    says: str
    check: Callable[[Case], float]
    sides: Tuple[str, ...]
    tolerance: float


class NotApplicable(Exception):
    """Raised by an invariant that says nothing about this case."""


INVARIANTS: Dict[str, Invariant] = {}


def invariant(says: str, sides: Tuple[str, ...] = ALL_SIDES, tolerance: float = EXACT):
    def register(check: Callable[[Case], float]) -> Callable[[Case], float]:
        INVARIANTS[check.__name__] = Invariant(check.__name__, says, check, sides, tolerance)
        return check

    return register


def run(spec: str, sides: Tuple[str, ...] = ALL_SIDES, options: Tuple[Tuple[str, Any], ...] = ()) -> Iterator[Outcome]:
    """Check one spec; yields an outcome per invariant and side."""
    for inv in INVARIANTS.values():
        for side in (s for s in sides if s in inv.sides):
            yield check_one(inv, Case(spec, side, options))


def check_one(inv: Invariant, case: Case) -> Outcome:
    try:
        return Outcome(inv.name, case.side, float(inv.check(case)), inv.tolerance)
    except NotApplicable as reason:
        return Outcome(inv.name, case.side, None, inv.tolerance, str(reason))
    except Exception as error:  # a scorer that crashes has failed the check, and the others still run
        detail = f"{type(error).__name__}: {error}".splitlines()[0]
        return Outcome(inv.name, case.side, float("inf"), inv.tolerance, detail)
