"""The options of frozen components, for every architecture. fairseq reads types from the annotations, so this file
must not say ``from __future__ import annotations``."""

from dataclasses import dataclass, field
from typing import Any, Optional

from fairseq.dataclass import ChoiceEnum, FairseqDataclass

FrozenDropout: Any = ChoiceEnum(["keep", "remove"])
StoreFrozen: Any = ChoiceEnum(["full", "seed"])


@dataclass
class FreezingOptions(FairseqDataclass):
    freeze: Optional[str] = field(
        default=None,
        metadata={
            "help": "train everything but these, which stay as they were initialised (or loaded): groups (embeddings, "
            "attention, ffn, self_attention, cross_attention, output, layer_norm, span), alone or below a module "
            "(decoder.ffn), modules (encoder.layers.0), or re:PATTERN for whole parameter names; comma-separated"
        },
    )
    frozen_dropout: FrozenDropout = field(
        default="keep",
        metadata={"help": "dropout inside frozen parts: keep (as without --freeze) or remove"},
    )
    frozen_init: Optional[int] = field(
        default=None,
        metadata={
            "help": "SEED: draw what is frozen from it, alike on every machine (default: as fairseq initialises it)"
        },
    )
    store_frozen: StoreFrozen = field(
        default="full",
        metadata={"help": "frozen tensors in checkpoints: full, or only the seed of --frozen-init"},
    )
    frozen_on_the_fly: bool = field(
        default=False,
        metadata={
            "help": "for generation, through --model-overrides: draw the rows of frozen matrices while multiplying, "
            "instead of holding them"
        },
    )
