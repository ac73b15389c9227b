"""The invariants (naive reference, padding, causality, cached decoding, ...), each a function of a :class:`Case`.

An invariant returns the largest error it saw; the runner compares it with the tolerance. In float64 the tolerance
is tight, so that an error of principle cannot hide behind rounding.
"""

from typing import Any, Dict

import torch
from torch import Tensor

from fairseq_synth.checks.case import (
    LENGTHS,
    MAX_LENGTH,
    Case,
    dictionary,
    padding_mask,
    shift_left_padding,
    states,
    tokens,
)
from fairseq_synth.checks.compare import attend, decode, gap, model_inputs, sentences
from fairseq_synth.checks.registry import NotApplicable, invariant
from fairseq_synth.errors import UsageError
from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.modules.positions import Positions


# ---------------------------------------------------------------------- the invariants
@invariant("equals a loop over sentences, heads and tokens")
def reference(case: Case) -> float:
    attention = case.attention()
    x = states(max(LENGTHS), len(LENGTHS))
    worst = 0.0
    for sentence in sentences(x):
        worst = max(worst, gap(attend(attention, sentence), naive_attention(attention, sentence)))
    return worst


def naive_attention(attention: SynthAttention, x: Tensor) -> Tensor:
    """T x 1 x C -> T x 1 x C, one token and one head at a time, from the scorer's rows."""
    steps, heads, size = x.size(0), attention.num_heads, attention.head_dim
    values = attention.v_proj(x).view(steps, heads, size)
    keys = None if attention.k_proj is None else attention.split_heads(attention.k_proj(x))
    out = torch.zeros(steps, heads, size, dtype=x.dtype)
    for t in range(steps):
        q_proj = attention.q_proj
        query: Any = None if q_proj is None else attention.split_heads(q_proj(x[t : t + 1])) * size**-0.5
        keyed = attention.of_key_heads(query)
        row = attention.scorer(x[t : t + 1], keyed, keys, Positions(t, 1, steps)).view(heads, steps)
        seen = t + 1 if attention.causal else steps
        for h in range(heads):
            weights = [torch.exp(row[h, s] - row[h, :seen].max()) * _soft_mask(attention, h, t, s) for s in range(seen)]
            slots = [values[s, h] for s in range(seen)]
            if attention.memory is not None:
                keys_h, values_h = (m[h] for m in attention.memory())
                weights += [torch.exp(query[0, h, 0] @ key - row[h, :seen].max()) for key in keys_h]
                slots += list(values_h)
            out[t, h] = sum(w * v for w, v in zip(weights, slots)) / sum(weights)
    return attention.out_proj(out.view(steps, 1, heads * size))


def _soft_mask(attention: SynthAttention, head: int, row: int, column: int) -> Any:
    """m_z(x) = clamp((R + z - x) / R, 0, 1) of the adaptive-span paper, 0 from the maximum span on."""
    span = attention.span
    if span is None:
        return 1.0
    distance = abs(row - column)
    soft = (span.ramp + span.span_ratio[head] * span.max_span - distance) / span.ramp
    return soft.clamp(0, 1) * (distance < span.max_span)


@invariant("pads on the left, on the right, or anywhere change nothing")
def padding(case: Case) -> float:
    x = states(max(LENGTHS), len(LENGTHS))
    right = attend(case.attention(right_padded=True), x, key_padding_mask=padding_mask())
    anywhere = attend(case.attention(), x, key_padding_mask=padding_mask())
    left = attend(case.attention(), shift_left_padding(x), key_padding_mask=padding_mask(left=True))
    # in cross-attention the queries are tokens of the other language: they move with their rows
    worst = 0.0
    for b, n in enumerate(LENGTHS):
        if case.side != "cross":
            worst = max(worst, gap(left[-n:, b], right[:n, b]))
        worst = max(worst, gap(anywhere[:n, b], right[:n, b]))
    source, target = model_inputs()
    model, real = case.model(), target.ne(1)
    expected = decode(model, source, target)[real]
    shifted = decode(model, model_inputs(left=True)[0], target)[real]
    left_target = tokens((6, 4, 3), pad_left=True, seed=9)
    for row, n in enumerate((6, 4, 3)):
        left_target[row, -n] = 2
    both = decode(model, model_inputs(left=True)[0], left_target)[left_target.ne(1)]
    return max(worst, gap(shifted, expected), gap(both, expected))


@invariant("no output depends on a later token", sides=("decoder", "cross"))
def causality(case: Case) -> float:
    model = case.model()
    source, target = tokens((7, 7)), tokens((6, 6), seed=9)
    before = decode(model, source, target)
    worst = 0.0
    for t in range(target.size(1)):
        changed = target.clone()
        changed[:, t] = 4 + (changed[:, t] - 3) % 20
        after = decode(model, source, changed)
        worst = max(worst, gap(after[:, :t], before[:, :t]) if t else 0.0)
        if gap(after[:, t:], before[:, t:]) == 0.0:
            raise ValueError(f"changing token {t} changes nothing: the test does not see the model")
    return worst


@invariant("cached decoding in chunks of 1, 2, 3 and all equals the full pass", sides=("decoder", "cross"))
@torch.no_grad()  # as in a search, which goes the short way
def cached(case: Case) -> float:
    attention = case.attention()
    x, memory = states(7, 3), states(5, 3, seed=8)
    keys, mask = (memory, padding_mask((5, 4, 2))) if case.side == "cross" else (x, None)
    full = attention(x, keys, keys, key_padding_mask=mask, need_weights=False)[0]
    worst = 0.0
    for chunk in (1, 2, 3, 7):
        state: Dict[str, Any] = {}
        outs = []
        for t in range(0, 7, chunk):
            new = x[t : t + chunk]
            keys = memory if case.side == "cross" else new
            outs.append(attention(new, keys, keys, mask, state, need_weights=False, static_kv=case.side == "cross")[0])
        worst = max(worst, gap(torch.cat(outs), full))
    return max(worst, _cached_with_left_pads(attention) if case.side == "decoder" else 0.0)


def _cached_with_left_pads(attention: SynthAttention) -> float:
    """Prompts of different lengths, padded on the left, then continued together."""
    lengths, total = (4, 3, 1), 7
    x = states(total, len(lengths))
    mask = torch.zeros(len(lengths), total, dtype=torch.bool)
    mask[:, :4] = padding_mask(lengths, left=True)
    worst = 0.0
    for chunk in (1, 2, 3):
        state: Dict[str, Any] = {}
        outs = [attention(x[:4], None, None, mask[:, :4], state, need_weights=False)[0]]
        for t in range(4, total, chunk):
            outs.append(attention(x[t : t + chunk], None, None, None, state, need_weights=False)[0])
        got = torch.cat(outs)
        for b, n in enumerate(lengths):
            alone = attention(x[4 - n :, b : b + 1], need_weights=False)[0]
            worst = max(worst, gap(got[4 - n :, b], alone[:, 0]))
    return worst


@invariant("a sentence alone equals the sentence in a batch")
def alone(case: Case) -> float:
    model = case.model()
    source, target = model_inputs(left=True)
    batch = decode(model, source, target)
    worst = 0.0
    for b in range(source.size(0)):
        one_source = source[b][source[b].ne(1)].unsqueeze(0)
        one_target = target[b][target[b].ne(1)].unsqueeze(0)
        worst = max(worst, gap(decode(model, one_source, one_target)[0], batch[b, : one_target.size(1)]))
    return worst


@invariant("step-by-step decoding follows a beam reorder", sides=("decoder", "cross"))
@torch.no_grad()  # as in a search, which goes the short way
def reorder(case: Case) -> float:
    model = case.model()
    source, target = tokens(pad_left=True), tokens((6, 6, 6), seed=9)
    worst = 0.0
    for order in (torch.tensor([2, 0]), torch.tensor([1]), torch.tensor([2, 2, 0, 1])):
        encoder_out = model.encoder(source, source.ne(1).sum(1))
        state: Dict[str, Any] = {}
        for t in range(1, 4):
            model.decoder(target[:, :t], encoder_out, incremental_state=state)
        model.decoder.reorder_incremental_state_scripting(state, order)
        encoder_out = model.encoder.reorder_encoder_out(encoder_out, order)
        for t in range(4, 7):
            step = model.decoder(target[order, :t], encoder_out, incremental_state=state)[0]
            full = decode(model, source[order], target[order, :t])[:, -1:]
            worst = max(worst, gap(step, full))
    return worst


@invariant("beyond the maximum length there is an error that names the option", tolerance=0.0)
def too_long(case: Case) -> float:
    attention = case.attention()
    if attention.max_length is None:
        attend(attention, states(3 * MAX_LENGTH, 1))
        raise NotApplicable("takes any length")
    attend(attention, states(attention.max_length, 1))
    try:
        attend(attention, states(attention.max_length + 1, 1))
    except UsageError as error:
        line = str(error)
    else:
        raise ValueError(f"{attention.max_length + 1} tokens were accepted, the maximum is {attention.max_length}")
    if "--synthesizer-max-length" not in line or str(attention.max_length + 1) not in line:
        raise ValueError(f"the error does not name the option and the length: {line}")
    return 0.0


@invariant("beam search scores equal teacher-forced scores", tolerance=1e-5)
def generation(case: Case) -> float:
    from fairseq.sequence_generator import SequenceGenerator

    model, words = case.model(), dictionary()
    source = tokens(pad_left=True)
    source[:, -1] = words.eos()
    generator = SequenceGenerator([model], words, beam_size=3, max_len_b=6, normalize_scores=False)
    sample = {"net_input": {"src_tokens": source, "src_lengths": source.ne(1).sum(1)}}
    worst = 0.0
    with torch.no_grad():
        for row, hypotheses in enumerate(generator.generate([model], sample)):
            one = source[row][source[row].ne(1)].unsqueeze(0)
            for hypothesis in hypotheses:
                target = hypothesis["tokens"]
                previous = torch.cat([target.new_tensor([words.eos()]), target[:-1]])
                logits = model(one, None, previous.unsqueeze(0))
                scores = model.get_normalized_probs(logits, log_probs=True)[0]
                forced = scores.gather(1, target.unsqueeze(1)).squeeze(1)
                worst = max(worst, gap(hypothesis["positional_scores"], forced.float()))
    return worst
