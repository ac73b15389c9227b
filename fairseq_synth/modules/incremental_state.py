"""Every key that this package puts into fairseq's incremental state, and into the encoder's output.

An attention has one entry of the incremental state, a dict of the keys under ATTENTION; a decoder has the keys under
DECODER in the incremental state itself. Nothing else survives between two decoding steps.

Legend: B rows (hypotheses), t cached slots, S source length, H heads, D head dim, C = H * D, N sentences, X hypotheses
of each.
"""

from typing import NamedTuple, Tuple

VALUES, KEYS, PADS = "prev_value", "prev_key", "prev_key_padding_mask"
DROPPED_PADS, ANSWERED, OWNERS = "prev_dropped_pads", "prev_query", "owners"
READ, SEEN = "read", "seen"
STEP, STATEFUL = "decoding step", "modules with a state"
SENTENCES = "sentences"


class Entry(NamedTuple):
    """A key, the shape of what is there, who writes it, and what a beam reorder makes of it."""

    key: str
    shape: str
    writer: str
    reorder: str


ROWS = "index_select(0, order)"
ATTENTION: Tuple[Entry, ...] = (
    Entry(VALUES, "Slots, t x B x C", "SynthAttention (self)", ROWS),
    Entry(KEYS, "Slots, t x B x C of the heads that need keys", "SynthAttention (self)", ROWS),
    Entry(PADS, "B x t or None, True at pads", "SynthAttention, SpanAttention", ROWS),
    Entry(DROPPED_PADS, "B or None, pads among the slots that a span dropped", "SynthAttention (self)", ROWS),
    Entry(ANSWERED, "B x t x 0: its shape counts the queries answered", "SynthAttention (cross)", ROWS),
    Entry(VALUES, "B x H x S x D", "SynthAttention (cross), CrossAttention, SpanAttention", ROWS),
    Entry(KEYS, "B x H x S x D", "SynthAttention (cross), CrossAttention, SpanAttention", ROWS),
    Entry(OWNERS, "N x X: the sentence of every row", "CrossAttention", "sentences that are left, counted anew"),
)
DECODER: Tuple[Entry, ...] = (
    Entry(STEP, "a DecodingStep, or None", "SynthDecoder", "it holds no rows"),
    Entry(STATEFUL, "a list of modules", "SynthDecoder", "it holds no rows"),
    Entry(READ, f"{{{SEEN!r}: B x 1, tokens already read}}", "SequentialDecoder", ROWS),
)
ENCODER_OUT: Tuple[Entry, ...] = (Entry(SENTENCES, "[B]: the sentence of every row", "SynthEncoder", ROWS),)
