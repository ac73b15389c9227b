"""Which rows of a decoding batch are hypotheses of one sentence, so that what comes from the sentence is held once.

fairseq repeats the encoder's output for every hypothesis and reorders it before every step, although a hypothesis
never leaves its sentence. (Its own remedy, ``set_beam_size``, outlives the search, and misreads the next batch.)

Legend: B rows, N sentences, X hypotheses of each, S source length.
"""

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor

from fairseq_synth.modules.incremental_state import SENTENCES

EncoderOut = Dict[str, List[Any]]


def number_rows(encoder_out: EncoderOut, rows: int, device: torch.device) -> EncoderOut:
    """Every row is a sentence of its own."""
    encoder_out[SENTENCES] = [torch.arange(rows, device=device)]
    return encoder_out


def hypotheses(encoder_out: EncoderOut) -> int:
    """X, or 1 where not every sentence has as many rows, side by side."""
    if not encoder_out.get(SENTENCES):
        return 1
    (sentences,) = encoder_out[SENTENCES]
    rows = sentences.numel()
    count = 1 + int((sentences[1:] != sentences[:-1]).sum())
    if rows % count or not torch.equal(sentences, sentences[:: rows // count].repeat_interleave(rows // count)):
        return 1
    return rows // count


def first_of_each(encoder_out: EncoderOut, each: int) -> EncoderOut:
    """What attention reads of the encoder's output, once per sentence: S x N x C, and the mask N x S."""
    states = [x[:, ::each] for x in encoder_out["encoder_out"]]
    masks = [x[::each] for x in encoder_out["encoder_padding_mask"]]
    return {**encoder_out, "encoder_out": states, "encoder_padding_mask": masks}


def rows_of(sentences: int, each: int, device: torch.device) -> Tensor:
    """The sentence of every row where each has ``each`` of them: N x X."""
    return torch.arange(sentences, device=device).unsqueeze(1).repeat(1, each)


def follow_order(order: Tensor, owner: Tensor) -> Tuple[Optional[Tensor], Tensor]:
    """What rows ``order`` make of the sentences: which of them, and the new owners.

    Without sentences, nothing changes. Where rows of several sentences mix, every row becomes a sentence of its own.
    """
    each = owner.size(1)
    sentences = torch.div(order, each, rounding_mode="floor")
    if torch.equal(sentences, owner.view(-1)):
        return None, owner
    kept = sentences[::each]
    if order.numel() % each or not torch.equal(sentences, kept.repeat_interleave(each)):
        kept, each = sentences, 1
    return kept, rows_of(kept.numel(), each, order.device)
