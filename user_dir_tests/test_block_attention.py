"""Attention in blocks of rows: the same numbers and gradients as one product over everything."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fairseq_synth.checks.case import Case, states
from fairseq_synth.modules.scorers import SCORERS
from fairseq_synth.modules.weighted_sum import blocks as module
from fairseq_synth.modules.weighted_sum import choose
from fairseq_synth.modules.weighted_sum.blocks import Logits, Rules, block_attention

BATCH, HEADS, SIZE, INNER = 3, 2, 4, 5
KINDS = ["shared bias", "bias", "product", "product and shared bias", "product and bias"]
MIXTURES = ["random+dot_product", "dense+dot_product", "dense+random", "factorized_random+factorized_dense"]


@pytest.fixture
def small_blocks(monkeypatch):
    """About three rows each, four blocks at most."""
    monkeypatch.setattr(module, "ROWS", 3)
    monkeypatch.setattr(module, "MOST_BLOCKS", 4)


def tensors(kind, steps, start=0, dtype=torch.float64):
    """Logits for rows that end with the last of start + steps keys, and values; all of them wanting gradients."""
    generator = torch.Generator().manual_seed(steps)

    def make(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    keys, product = start + steps, "product" in kind
    # views, as the attention has them or not
    rows = make(BATCH, steps, HEADS, INNER).transpose(1, 2) if product else None
    columns = make(keys, BATCH, HEADS, INNER).permute(1, 2, 0, 3) if product else None
    shape = (HEADS, steps, keys) if "shared" in kind else (BATCH, HEADS, steps, keys)
    bias = make(*shape) if "bias" in kind else None
    value = make(keys, BATCH, HEADS, SIZE).permute(1, 2, 0, 3)
    return Logits(rows, columns, bias), value


def naive(logits, value, rules, hidden=None, noise=None):
    scores = 0.0 if logits.rows is None else logits.rows.matmul(logits.columns.transpose(-2, -1))
    scores = scores + (0.0 if logits.bias is None else logits.bias)
    scores = scores.expand(value.size(0), *scores.shape[-3:])
    if rules.causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(rules.start + 1)
        scores = scores.masked_fill(future, float("-inf"))
    if hidden is not None:
        scores = scores.masked_fill(hidden[:, None, None], torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1)
    return (weights if noise is None else weights * noise).matmul(value).permute(2, 0, 1, 3).flatten(2)


def gradients(x, inputs):
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)
    return torch.autograd.grad(x, [t for t in inputs if t is not None and t.requires_grad], gradient)


def assert_same(got, expected, inputs, **tolerance):
    tolerance = tolerance or {"atol": 1e-12}
    assert torch.allclose(got, expected, **tolerance)
    for a, b in zip(gradients(got, inputs), gradients(expected, inputs)):
        assert a.shape == b.shape and torch.allclose(a, b, **tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("start", [0, 2])
def test_equals_one_product_over_everything(kind, causal, start, small_blocks):
    for steps in (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 20):  # one block to four, even and not
        logits, value = tensors(kind, steps, start)
        rules = Rules(start, causal)
        hidden = torch.arange(start + steps) >= torch.tensor([[start + steps], [start + 1], [1 + start // 2]])
        for mask in (None, hidden):
            inputs = [*logits, value]
            assert_same(block_attention(logits, value, rules, mask), naive(logits, value, rules, mask), inputs)


@settings(max_examples=100, deadline=None)
@given(steps=st.integers(1, 3000), start=st.integers(0, 5), causal=st.booleans(), on_gpu=st.booleans())
def test_blocks_cover_every_row_once_and_what_it_sees(steps, start, causal, on_gpu):
    blocks = module._blocks(steps, start + steps, Rules(start, causal), on_gpu)
    assert [row for first, last, _ in blocks for row in range(first, last)] == list(range(steps))
    assert all(end == start + (last if causal else steps) for _, last, end in blocks)
    assert len(blocks) <= (1 if on_gpu or not causal else module.MOST_BLOCKS)


def test_long_causal_maps_are_cut():
    assert len(module._blocks(1024, 1024, Rules(0, True), False)) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_finite_differences(kind, small_blocks):
    logits, value = tensors(kind, 7)
    given_inputs = [t for t in (*logits, value) if t is not None]

    def run(*inputs):
        rest = list(inputs)
        parts = [None if t is None else rest.pop(0) for t in (*logits, value)]
        return block_attention(Logits(*parts[:3]), parts[3], Rules(0, True))

    inputs = [t.detach().requires_grad_() for t in given_inputs]
    assert torch.autograd.gradcheck(run, inputs, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("causal", [True, False])
def test_dropout(kind, causal, small_blocks):
    """The noise of the reference is drawn block by block from the same seed."""
    steps, rules = 7, Rules(0, causal, 0.4)
    logits, value = tensors(kind, steps)
    groups = HEADS if kind == "shared bias" else BATCH * HEADS
    torch.manual_seed(3)
    noise = torch.zeros(groups, steps, steps, dtype=torch.float64)
    for first, last, end in module._blocks(steps, steps, rules, False):
        noise[:, first:last, :end] = F.dropout(torch.ones(groups, last - first, end, dtype=torch.float64), 0.4)
    assert 0.2 < (noise.tril() == 0).double().mean() < 0.9
    torch.manual_seed(3)
    got = block_attention(logits, value, rules)
    assert_same(got, naive(logits, value, rules, noise=noise.view(-1, HEADS, steps, steps)), [*logits, value])
    assert float(block_attention(logits, value, Rules(0, causal, 1.0)).detach().abs().max()) == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_takes_its_softmax_in_float32(kind, small_blocks):
    logits, value = tensors(kind, 8, dtype=torch.bfloat16)
    wide = [None if t is None else t.double() for t in (*logits, value)]
    got = block_attention(logits, value, Rules(0, True))
    assert got.dtype == torch.bfloat16
    assert module._scores(logits, (3, 6, 6), BATCH, Rules(0, True), None).dtype == torch.float32
    expected = naive(Logits(*wide[:3]), wide[3], Rules(0, True))
    assert torch.allclose(got.double(), expected, atol=0.03)
    inputs = [t for t in (*logits, value) if t is not None]
    for a, b in zip(gradients(got, inputs), gradients(expected, inputs)):
        assert a.dtype == torch.bfloat16 and torch.allclose(a.double(), b.double(), atol=0.1, rtol=0.05)


@pytest.mark.parametrize("trained, products", [("value", 2), ("bias", 2), ("rows", 4), ("columns", 4)])
def test_what_is_frozen_costs_no_product(trained, products, monkeypatch):
    counted, product = [], module.batch_product
    monkeypatch.setattr(module, "batch_product", lambda *a, **k: counted.append(1) or product(*a, **k))
    kind = "product" if trained in ("rows", "columns") else "shared bias"
    logits, value = tensors(kind, 5)
    inputs = {**logits._asdict(), "value": value}
    inputs = {k: t if t is None else t.detach().requires_grad_(k == trained) for k, t in inputs.items()}
    value, logits = inputs.pop("value"), Logits(**inputs)
    got = block_attention(logits, value, Rules(0, True))
    expected = naive(logits, value, Rules(0, True))
    assert_same(got, expected, [*logits, value])
    assert len(counted) == products


def test_a_second_derivative_is_refused():
    logits, value = tensors("shared bias", 4)
    first = torch.autograd.grad(block_attention(logits, value, Rules()).pow(2).sum(), value, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize(
    "options", [(), (("encoder_adaptive_span", 6), ("decoder_adaptive_span", 6), ("span_ramp", 2))]
)
@pytest.mark.parametrize("spec", sorted(SCORERS) + MIXTURES)
def test_every_scorer_has_the_outputs_and_gradients_of_the_path_with_weights(spec, options, side, small_blocks):
    attention, x = Case(spec, side, options).attention(right_padded=True), states(11, 3)
    mask = torch.arange(11) >= torch.tensor([[11], [7], [1]])
    real = mask.logical_not().t().unsqueeze(-1)
    for padding in (None, mask):
        inputs = [x.requires_grad_(), *(p for p in attention.parameters() if p.requires_grad)]
        plain = attention(x, key_padding_mask=padding, need_weights=False)[0]
        weighed = attention(x, key_padding_mask=padding, need_weights=True)[0]
        assert_same(*(y if padding is None else y * real for y in (plain, weighed)), inputs, atol=1e-7)


def test_checkpointed_activations(small_blocks):
    attention, x = Case("random+dot_product", "decoder").attention(), states(9, 2).requires_grad_()
    inputs = [x, *attention.parameters()]

    def run(x):
        return attention(x, need_weights=False)[0]

    assert_same(checkpoint(run, x, use_reentrant=False), run(x), inputs)


@pytest.mark.parametrize("spec", ["random", "dot_product", "random+dot_product", "random|dot_product"])
def test_autocast_goes_in_blocks_too(spec):
    """In the type of autocast, with the gradients of PyTorch's way."""
    attention, x = Case(spec, "decoder").attention().float(), states(9, 2).float()
    found = {}
    for ways in (choose.WAYS, [choose.whole.WAY]):
        with mock.patch.object(choose, "WAYS", ways), choose.watch_ways() as taken:
            with torch.autocast("cpu", torch.bfloat16):
                out = attention(x, need_weights=False)[0]
        assert out.dtype == torch.bfloat16
        trained = list(attention.parameters())
        found[taken[0]] = [out.float(), *torch.autograd.grad(out.float().pow(2).sum(), trained)]
    for got, expected in zip(found["blocks"], found["whole"]):
        assert torch.allclose(got, expected, rtol=0.05, atol=0.03 * float(expected.detach().abs().max()))
