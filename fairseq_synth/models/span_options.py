"""The options of spans and persistent memory that every architecture has. fairseq reads types from the annotations, so
this file must not say ``from __future__ import annotations``."""

from dataclasses import dataclass, field

from fairseq.dataclass import FairseqDataclass


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
