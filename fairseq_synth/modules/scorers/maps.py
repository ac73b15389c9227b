"""Initial values of logit maps, shared by the random scorers."""

import math
from dataclasses import dataclass, field
from typing import Any

from fairseq.dataclass import ChoiceEnum

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.initial import Rule
from fairseq_synth.modules.scorers.base import LengthOptions

INITS = ("glorot", "normal")
InitChoice: Any = ChoiceEnum(list(INITS))


@dataclass
class MapOptions(LengthOptions):
    init: InitChoice = field(
        default="glorot",
        metadata={"help": "initial maps: glorot (near-uniform attention, as in the authors' code) or normal"},
    )


def map_rule(init: str, heads: int, rows: int, columns: int, variance: float = 1.0) -> Rule:
    """Of a logit map H x N x M.

    ``glorot``: the authors' initialiser, fans guessed from the three dimensions, which makes the attention start
    practically uniform. ``normal``: N(0, variance).
    """
    if str(init) == "normal":
        return Rule("normal", math.sqrt(variance))
    if str(init) == "glorot":
        return Rule("uniform", math.sqrt(6.0 / (columns * (rows + heads))))
    raise UsageError(f"--synthesizer-init {init}: not one of {', '.join(INITS)}")
