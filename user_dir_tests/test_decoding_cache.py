"""The decoding cache: what adaptive spans let it forget, and that neither this nor short ways change a result."""

import copy
import math

import pytest
import torch
from fairseq.modules import MultiheadAttention
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_synth.checks import INVARIANTS, check_one
from fairseq_synth.checks.case import MAX_LENGTH, Case, padding_mask, states
from fairseq_synth.decoding.cross_attention import CrossAttention, CrossAttentionStep
from fairseq_synth.errors import UsageError
from fairseq_synth.modules.scorers import SCORERS

SPAN, TOTAL = 4, MAX_LENGTH
OPTIONS = (("decoder_adaptive_span", SPAN), ("span_ramp", 1))
MIXTURES = ["random+dot_product", "dense+factorized_random", "factorized_dense+fixed_random+dot_product"]
SPECS = sorted(SCORERS) + MIXTURES


def spanned(spec, *options, spans=(0.5, 2.5)):
    """Heads that look back 2 and 4 tokens (themselves included), far less than the 12 there are."""
    attention = Case(spec, "decoder", OPTIONS + options).attention()
    attention.span.span_ratio.data = torch.tensor(spans).double() / SPAN
    assert attention.span.windows() == [min(SPAN, math.floor(z + 1) + 1) for z in spans]
    return attention


def step(attention, x, state, mask=None):
    return attention(x, key_padding_mask=mask, incremental_state=state, need_weights=False)[0]


def decode(attention, x, state, chunks, mask=None):
    outs, t = [], 0
    for chunk in chunks:
        part = slice(t, t + chunk)
        outs.append(step(attention, x[part], state, None if mask is None else mask[:, part]))
        t += chunk
    return torch.cat(outs)


def cached(attention, state):
    """The lengths of everything that is cached, which must agree."""
    buffer = attention._get_input_buffer(state)
    lengths = {
        n: t.size(1) if n.endswith("mask") else len(t) for n, t in buffer.items() if t is not None and n in STORED
    }
    assert len(set(lengths.values())) == 1, lengths
    return next(iter(lengths.values()))


STORED = ("prev_value", "prev_key", "prev_key_padding_mask")


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("chunk", [1, 2, 3, TOTAL])
@pytest.mark.parametrize("persistent", [0, 3])
def test_cached_equals_full_within_the_largest_window(spec, chunk, persistent):
    attention, x, state = spanned(spec, ("persistent_memory", persistent)), states(TOTAL, 2), {}
    full = attention(x, need_weights=False)[0]
    for t in range(0, TOTAL, chunk):
        got = step(attention, x[t : t + chunk], state)
        assert torch.allclose(got, full[t : t + chunk], atol=1e-9)
        assert cached(attention, state) == min(t + chunk, SPAN - 1)  # the next query is the fourth of its window
    buffer = attention._get_input_buffer(state)
    assert buffer["prev_value"].dropped == TOTAL - SPAN + 1


def test_a_cache_follows_the_learned_span_not_its_maximum():
    attention, state = spanned("dot_product", spans=(0.0, 0.5)), {}
    decode(attention, states(TOTAL, 2), state, [1] * TOTAL)
    assert cached(attention, state) == 1
    attention, state = spanned("dot_product", spans=(0.0, 0.0)), {}
    full = attention(states(TOTAL, 2), need_weights=False)[0]
    assert torch.allclose(decode(attention, states(TOTAL, 2), state, [1] * TOTAL), full, atol=1e-9)
    assert cached(attention, state) == 1  # every token sees itself, and has a gradient at the one before


def test_without_a_span_nothing_is_dropped():
    attention, state = Case("random", "decoder").attention(), {}
    decode(attention, states(TOTAL, 2), state, [5, 1, 6])
    assert cached(attention, state) == TOTAL


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_prompts_of_different_lengths(spec, chunk):
    """Padded on the left; distances count tokens. The longest prompt is longer than the window."""
    attention, lengths, prompt = spanned(spec), (6, 5, 1), 6
    x, state = states(TOTAL, 3), {}
    mask = torch.zeros(3, TOTAL, dtype=torch.bool)
    mask[:, :prompt] = padding_mask(lengths, left=True)
    outs = [step(attention, x[:prompt], state, mask[:, :prompt])]
    assert cached(attention, state) == SPAN - 1
    outs += [step(attention, x[t : t + chunk], state) for t in range(prompt, TOTAL, chunk)]
    assert cached(attention, state) == SPAN - 1
    assert_alone(attention, torch.cat(outs), x, mask)


@pytest.mark.parametrize("name", ["cached", "generation", "reorder", "padding"])
@pytest.mark.parametrize("spec", ["random", "dot_product", "dense+random"])
def test_a_model_with_short_spans_decodes_as_it_reads(name, spec):
    outcome = check_one(INVARIANTS[name], Case(spec, "decoder", OPTIONS))
    assert outcome.passed, f"{outcome.detail} (error {outcome.error})"


def assert_alone(attention, got, x, mask):
    """Every sentence equals itself without its pads."""
    for b, row in enumerate(mask):
        alone = attention(x[~row][:, b : b + 1], need_weights=False)[0]
        assert torch.allclose(got[~row][:, b], alone[:, 0], atol=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    chunks=st.lists(st.integers(1, 4), min_size=3, max_size=12),
    pads=st.lists(st.lists(st.booleans(), min_size=TOTAL, max_size=TOTAL), min_size=1, max_size=3),
)
def test_pads_anywhere_and_any_chunks(spec, chunks, pads):
    """Pads between tokens keep more slots, never fewer tokens, than the window."""
    attention, mask = spanned(spec), torch.tensor(pads)
    chunks = [c for i, c in enumerate(chunks) if sum(chunks[: i + 1]) <= TOTAL]
    total = sum(chunks)
    mask = mask[:, :total]
    mask[:, total - 1] = False  # every sentence has a token
    x, state = states(total, len(pads)), {}
    assert_alone(attention, decode(attention, x, state, chunks, mask), x, mask)
    real = attention._get_input_buffer(state)["prev_key_padding_mask"].logical_not().sum(1)
    assert all(int(n) >= min(SPAN - 1, int(row.logical_not().sum())) for n, row in zip(real, mask))


def test_a_mask_of_the_whole_prefix_is_understood():
    attention, x = spanned("random+dot_product"), states(TOTAL, 3)
    mask = torch.zeros(3, TOTAL, dtype=torch.bool)
    mask[:, :6] = padding_mask((6, 5, 1), left=True)
    one, other = {}, {}
    for t in range(TOTAL):
        part = slice(t, t + 1)
        expected = step(attention, x[part], one, mask[:, part])
        assert torch.equal(step(attention, x[part], other, mask[:, : t + 1]), expected)


@pytest.mark.parametrize("left_pads", [False, True])
def test_a_reordered_cache_continues_the_other_sentence(left_pads):
    attention, x, order = spanned("random+dot_product"), states(TOTAL, 3), torch.tensor([2, 0, 2, 1])
    mask = torch.zeros(3, TOTAL, dtype=torch.bool)
    if left_pads:
        mask[:, :6] = padding_mask((6, 4, 1), left=True)
    state = {}
    before = decode(attention, x[:8], state, (6, 1, 1), mask[:, :8] if left_pads else None)
    attention.reorder_incremental_state(state, order)
    after = decode(attention, x[8:, order], state, [1] * 4)
    got = torch.cat([before[:, order], after])
    assert_alone(attention, got, x[:, order], mask[order])


@pytest.mark.parametrize("spec", ["random", "dense", "random+dot_product"])
def test_what_was_dropped_counts_towards_the_maximum_length(spec):
    attention, state = spanned(spec), {}
    decode(attention, states(TOTAL, 2), state, [1] * TOTAL)
    with pytest.raises(UsageError, match=f"--synthesizer-max-length {MAX_LENGTH}: a sequence of {MAX_LENGTH + 1}"):
        step(attention, states(1, 2), state)


def test_pads_that_were_dropped_do_not_count():
    """Two pads, then as many tokens as there may be."""
    attention, state = spanned("random"), {}
    mask = torch.zeros(1, TOTAL + 2, dtype=torch.bool)
    mask[:, :2] = True
    x = states(TOTAL + 2, 1)
    got = decode(attention, x, state, [1] * (TOTAL + 2), mask)
    assert_alone(attention, got, x, mask)
    with pytest.raises(UsageError, match=f"a sequence of {MAX_LENGTH + 1} tokens"):
        step(attention, states(1, 1), state)


# ------------------------------------------------------------------------------------------- attention to the encoder
def cross_attention():
    """fairseq's own, and ours with the same weights."""
    torch.manual_seed(0)
    theirs = MultiheadAttention(8, 2, kdim=6, vdim=6, encoder_decoder_attention=True).eval()
    ours = copy.deepcopy(theirs)
    ours.__class__ = CrossAttention
    for module in (theirs, ours):
        module.set_beam_size(3)
    return theirs, ours


@torch.no_grad()
@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("asked", [{}, {"need_weights": True}, {"need_weights": True, "need_head_weights": True}])
def test_cross_attention_steps_equal_fairseqs(pads, asked, monkeypatch):
    """Two sentences with three hypotheses each; then the first sentence is finished."""
    modules, states_, source = cross_attention(), ({}, {}), torch.randn(4, 2, 6).repeat_interleave(3, dim=1)
    mask = (torch.arange(4) >= torch.tensor([[4], [2]])).repeat_interleave(3, dim=0) if pads else None
    short = []
    step = CrossAttentionStep.__call__
    monkeypatch.setattr(CrossAttentionStep, "__call__", lambda *a: short.append(1) or step(*a))
    for count in (6, 6, 3):
        x = torch.randn(1, count, 8)
        outs = []
        for module, state in zip(modules, states_):
            if count == 3:
                module.reorder_incremental_state(state, torch.tensor([5, 3, 4]))
            options = {"incremental_state": state, "static_kv": True, **{"need_weights": False, **asked}}
            keys = source[:, -count:]
            outs.append(module(x, keys, keys, None if mask is None else mask[-count:], **options))
        (expected, weights), (got, own_weights) = outs
        assert torch.allclose(got, expected, atol=1e-6)
        assert (weights is None) == (own_weights is None)
        assert weights is None or torch.allclose(own_weights, weights, atol=1e-6)
    assert len(short) == 2  # the first step has nothing cached


def test_models_attend_to_the_encoder_in_this_way():
    model = Case("random", "decoder").model()
    assert all(type(layer.encoder_attn) is CrossAttention for layer in model.decoder.layers)
