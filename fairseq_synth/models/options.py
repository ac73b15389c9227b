"""The options of this package's models, as small dataclasses that the models' own are made of.

fairseq reads types from the annotations, so this file must not say ``from __future__ import annotations``.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, List, Optional, Tuple, Type

from fairseq.dataclass import FairseqDataclass

from fairseq_synth.modules.scorers.base import LISTENERS, scorer_options

KEEP_HELP = "which layers to keep when pruning, comma-separated: 0,2,4"
SPAN_HELP = "each head learns how far it looks, at most this many tokens (0: everywhere)"
INNER_HELP = "width of queries, keys and values, all heads together (0: the embedding dimension)"
SPEC_HELP = (
    "scorer, mixture (random+dot_product), heads (random:2|dot_product:6) or list of layers "
    "(dot_product*2,random*4) for "
)


@dataclass
class SpanOptions(FairseqDataclass):
    span_ramp: int = field(default=32, metadata={"help": "R: length of the soft end of an adaptive span"})
    span_loss: float = field(
        default=5e-7, metadata={"help": "weight of the mean span of each layer (in tokens) in the training loss"}
    )
    persistent_memory: int = field(
        default=0,
        metadata={"help": "N: persistent key/value vectors per head; they replace the feed-forward sublayers"},
    )
    keep_feed_forward: bool = field(
        default=False, metadata={"help": "keep the feed-forward sublayers beside --persistent-memory"}
    )


def side_options(side: str) -> Type[Any]:
    """What encoder or decoder have beside what fairseq gives them; names are prefixed with the side."""

    @dataclass
    class SideOptions:
        # fairseq declares a list and splits a string
        layers_to_keep: Optional[str] = field(default=None, metadata={"help": KEEP_HELP})
        self_attention: str = field(default="random", metadata={"help": f"{SPEC_HELP}{side} self-attention"})
        adaptive_span: int = field(default=0, metadata={"help": SPAN_HELP})
        attention_dim: int = field(default=0, metadata={"help": INNER_HELP})

    return SideOptions


# ``--synthesizer-...``: those of all scorers
SynthesizerConfig = dataclasses.make_dataclass(
    "SynthesizerConfig",
    [(f.name, f.type, field(default=f.default, metadata=dict(f.metadata))) for f in scorer_options()],
    bases=(FairseqDataclass,),
    namespace={"__module__": __name__},
)

# dataclasses that hold the scorers' options, and the prefix of their names in them
HOLDERS: List[Tuple[Type[Any], str]] = [(SynthesizerConfig, "")]


def _add_options(fields: List[dataclasses.Field]) -> None:
    """A scorer was registered after the models (by another ``--user-dir``): its options join theirs.

    The classes change in place, since fairseq, hydra and checkpoints know them by identity.
    """
    for holder, prefix in HOLDERS:
        for one in fields:
            name = prefix + one.name
            if name not in holder.__dataclass_fields__:
                made = dataclasses.make_dataclass(
                    "Added", [(name, one.type, field(default=one.default, metadata=dict(one.metadata)))]
                )
                holder.__dataclass_fields__[name] = made.__dataclass_fields__[name]  # type: ignore[attr-defined]
                holder.__annotations__[name] = one.type
                setattr(holder, name, one.default)


LISTENERS.append(_add_options)
