"""Adaptive spans, banded attention and persistent memory: reference, invariants, gradients, cost."""

import math

import pytest
import span_reference as reference
import torch

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.adaptive_span import AdaptiveSpan, group_heads
from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.modules.persistent_memory import PersistentMemory
from fairseq_synth.modules.scorers import AttentionConfig, build_scorer
from fairseq_synth.modules.span_attention import SpanAttention
from fairseq_synth.modules.weighted_sum.banded import banded_attention

HEADS, SIZE, MAX_SPAN, RAMP, STEPS, BATCH = 3, 4, 20, 4, 11, 2
WIDTH = HEADS * SIZE


def attention(memory=0, ratios=(0.0, 0.1, 0.4), max_span=MAX_SPAN, ramp=RAMP, seed=0):
    """In float64, with positions. Spans of 0, 2 and 8 tokens: the longest reaches across several blocks."""
    torch.manual_seed(seed)
    span = AdaptiveSpan(HEADS, max_span, ramp)
    persistent = PersistentMemory(HEADS, memory, SIZE) if memory else None
    module = SpanAttention(WIDTH, HEADS, span, memory=persistent).double()
    span.span_ratio.data = torch.tensor(ratios, dtype=torch.double)
    return module, torch.randn(max_span, SIZE, dtype=torch.double)


def tokens(steps=STEPS, batch=BATCH, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(steps, batch, WIDTH, dtype=torch.double, generator=generator)


def weights(module):
    named = {f"{n}_proj": getattr(module, f"{n}_proj").weight.tolist() for n in ("q", "k", "v", "out")}
    if module.memory is not None:
        named["memory_key"], named["memory_value"] = (t.tolist() for t in module.memory())
    return named


def assert_close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------- the span
def test_mask_is_the_formula():
    span = AdaptiveSpan(2, 100, ramp=32, initial_span=10)
    span.span_ratio.data = torch.tensor([0.1, 0.9])
    got = span.mask(torch.arange(130)).tolist()
    for row, z in zip(got, (10, 90)):
        expected = [reference.mask(z, 32, x, 100) for x in range(130)]
        assert row == pytest.approx(expected, abs=1e-5)
    assert got[1][99] > 0 and got[1][100] == 0  # never beyond the maximum
    assert span.windows() == [43, 100]


def test_log_mask_is_the_log_and_has_finite_gradients():
    span = AdaptiveSpan(1, 100, ramp=8, initial_span=4)
    log = span.log_mask(torch.arange(20))
    assert_close(log.exp(), span.mask(torch.arange(20)), 1e-6)
    log[log > -math.inf].sum().backward()
    assert torch.isfinite(span.span_ratio.grad).all() and span.span_ratio.grad.abs().sum() > 0


def test_spans_loss_and_clamping():
    span = AdaptiveSpan(2, 100)
    span.span_ratio.data = torch.tensor([-0.5, 1.5])
    assert span.spans().tolist() == [0, 100]  # in use, always inside
    span.set_num_updates(1)
    assert span.span_ratio.tolist() == [0, 1]
    span.span_ratio.data = torch.tensor([0.1, 0.3])
    loss = span.loss()
    loss.backward()
    assert loss.item() == pytest.approx(20)
    assert span.span_ratio.grad.tolist() == pytest.approx([50, 50])  # S / heads: a ratio, not tokens


def test_fixed_spans_are_not_trained():
    assert not AdaptiveSpan(2, 100, initial_span=50, fixed=True).span_ratio.requires_grad


@pytest.mark.parametrize("wrong", [{"initial_span": 101}, {"initial_span": -1}, {"ramp": 0}, {"max_span": 0}])
def test_wrong_spans_are_refused(wrong):
    with pytest.raises(UsageError, match="must be"):
        AdaptiveSpan(**{"num_heads": 2, "max_span": 100, **wrong})


def test_heads_of_similar_window_share_a_group():
    groups = group_heads([4032, 282, 40, 232, 100])
    assert [(g.heads, g.window) for g in groups] == [((0,), 4032), ((1, 3), 282), ((2, 4), 100)]
    assert [g.heads for g in group_heads([132, 32, 72])] == [(0, 1, 2)]


# ------------------------------------------------------------------------------------------- the attention
@pytest.mark.parametrize("memory", [0, 5])
@pytest.mark.parametrize("ratios", [(0.0, 0.1, 0.4), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)])
def test_equals_the_reference(memory, ratios):
    module, positions = attention(memory, ratios)
    x, spans = tokens(30), module.span.spans().tolist()
    y = module(x, positions)
    for b in range(BATCH):
        expected = reference.layer(x[:, b].tolist(), weights(module), HEADS, positions.tolist(), spans, RAMP)
        assert_close(y[:, b], torch.tensor(expected, dtype=torch.double))


@pytest.mark.parametrize("memory", [0, 5])
def test_equals_the_reference_when_heads_are_grouped(memory):
    """Spans far enough apart for groups of their own, and more queries than one chunk."""
    module, positions = attention(memory, (0.02, 0.9, 0.01), max_span=300)
    assert len(module.span.groups()) == 2
    x, spans = tokens(170, 1), module.span.spans().tolist()
    expected = reference.layer(x[:, 0].tolist(), weights(module), HEADS, positions.tolist(), spans, RAMP)
    assert_close(module(x, positions)[:, 0], torch.tensor(expected, dtype=torch.double))


def test_first_position_sees_nothing_and_is_zero():
    module, positions = attention()
    assert module(tokens(), positions)[0].abs().max() == 0


@pytest.mark.parametrize("memory", [0, 5])
@pytest.mark.parametrize("block", [1, 2, 5, 8])
def test_blocks_with_their_past_equal_the_whole(memory, block):
    module, positions = attention(memory)
    x = tokens(24)
    reach = module.reach
    blocks = [module(x[i : i + block], positions, x[max(0, i - reach) : i]) for i in range(0, len(x), block)]
    assert_close(torch.cat(blocks), module(x, positions))


@pytest.mark.parametrize("memory", [0, 5])
@pytest.mark.parametrize("chunk", [1, 2, 3, STEPS])
def test_cached_equals_full_and_drops_what_is_out_of_reach(memory, chunk):
    module, positions = attention(memory)
    x, state = tokens(24), {}
    steps = [module(x[i : i + chunk], positions, incremental_state=state) for i in range(0, len(x), chunk)]
    assert_close(torch.cat(steps), module(x, positions))
    assert module._get_input_buffer(state)["prev_key"].size(2) == module.reach == 13


def test_reordered_state_continues_the_other_sentence():
    module, positions = attention(5)
    x, state = tokens(batch=3), {}
    module(x[:-1], positions, incremental_state=state)
    order = torch.tensor([2, 0])
    module.reorder_incremental_state(state, order)
    last = module(x[-1:, order], positions, incremental_state=state)
    assert_close(last, module(x, positions)[-1:, order])


@pytest.mark.parametrize("memory", [0, 5])
def test_padding_on_either_side_changes_nothing(memory):
    module, positions = attention(memory)
    x = tokens()
    hidden = torch.zeros(BATCH, STEPS, dtype=torch.bool)
    hidden[0, :3] = True
    hidden[1, -2:] = True
    y = module(x, positions, pads=hidden)
    assert_close(y[3:, :1], module(x[3:, :1], positions))
    assert_close(y[:-2, 1:], module(x[:-2, 1:], positions))
    assert torch.isfinite(y).all()
    state = {}
    cached = [module(x[i : i + 1], positions, pads=hidden[:, i : i + 1], incremental_state=state) for i in range(STEPS)]
    assert_close(torch.cat(cached), y)


def test_only_the_past_within_the_span_matters():
    module, positions = attention(0, (0.1, 0.1, 0.1))
    x = tokens()
    other = x.clone()
    other[6] += 1
    changed = (module(other, positions) - module(x, positions)).abs().amax((1, 2)) > 1e-12
    # the token itself asks differently; then those who reach it: z + R = 2 + 4 positions, the ramp's end excluded
    assert changed.tolist() == [6 <= t <= 6 + min(module.reach - 1, STEPS) for t in range(STEPS)]


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_of_the_band(memory, hide, dropout):
    torch.manual_seed(0)
    window, steps, heads, batch = 6, 9, 2, 2

    def parameter(*shape):
        return torch.randn(*shape, dtype=torch.double, requires_grad=True)

    query, position = parameter(batch * heads, steps, 3), parameter(window, 3)
    key, value = (parameter(batch * heads, window + steps - 1, 3) for _ in range(2))
    extra = [parameter(heads, 4, 3) for _ in range(2)] if memory else []
    hidden = torch.zeros(batch, window + steps - 1, dtype=torch.bool)
    hidden[0, :8] = True  # the first queries of the first sentence see nothing

    def run(query, key, value, position, log_mask, *extra):
        torch.manual_seed(1)
        visible = hidden if hide else None
        return banded_attention(query, key, value, position, log_mask, extra or None, visible, dropout, chunk=4)

    assert torch.autograd.gradcheck(run, (query, key, value, position, parameter(heads, 3), *extra))


def test_every_parameter_learns():
    module, positions = attention(5)
    positions.requires_grad_()
    module(tokens(), positions, tokens(6, seed=2)).pow(2).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
    assert positions.grad[: module.reach].abs().sum(1).min() > 0


def test_dropout_keeps_the_mean_and_is_off_in_evaluation():
    module, positions = attention(5)
    x = tokens()
    exact = module.eval()(x, positions)
    module.dropout = 0.5
    assert_close(module(x, positions), exact)
    torch.manual_seed(0)
    mean = torch.stack([module.train()(x, positions) for _ in range(600)]).mean(0)
    assert (mean - exact).abs().max() < 0.15 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(dtype):
    module, positions = attention(5)
    x = tokens()
    exact = module(x, positions).float()
    try:
        half = module.to(dtype)(x.to(dtype), positions.to(dtype)).float()
    except RuntimeError as error:  # torch 2.2 has no half matrix products on the CPU
        pytest.skip(str(error).splitlines()[0])
    torch.testing.assert_close(half, exact, rtol=0, atol=0.05)


# ------------------------------------------------------------------------------------------- memory vectors and cost
def test_persistent_memory_has_unit_scale_in_use_and_small_parameters():
    torch.manual_seed(0)
    memory = PersistentMemory(4, 256, 64)
    key, value = memory()
    assert key.shape == value.shape == (4, 256, 64)
    assert key.std().item() == pytest.approx(1, abs=0.02) and value.std().item() == pytest.approx(1, abs=0.02)
    assert memory.key.std().item() == pytest.approx(1 / 8, abs=0.01)
    assert memory.value.std().item() == pytest.approx(1 / 16, abs=0.01)
    with pytest.raises(UsageError, match="--persistent-memory 0"):
        PersistentMemory(4, 0, 64)


def _multiplications(spans, max_span=1024, block=64):
    """Of one forward and backward, counted by torch."""
    from torch.utils.flop_counter import FlopCounterMode

    heads = len(spans)
    span = AdaptiveSpan(heads, max_span)
    span.span_ratio.data = torch.tensor(spans) / max_span
    module = SpanAttention(heads * 8, heads, span)
    positions = torch.randn(module.reach, 8, requires_grad=True)
    counter = FlopCounterMode(display=False)
    with counter:
        module(torch.randn(block, 1, heads * 8), positions, torch.randn(module.reach, 1, heads * 8)).sum().backward()
    return counter.get_total_flops()


def test_cost_follows_each_heads_own_span():
    short, one, all_long = (_multiplications(s) for s in ([0.0] * 8, [960.0] + [0.0] * 7, [960.0] * 8))
    assert one - short < 1.2 * (all_long - short) / 8
    assert _multiplications([60.0] * 8, 256) == _multiplications([60.0] * 8, 8192)


# ---------------------------------------------------------------------- gradients at the ends of the domain
def authors_span_gradient(attention, x, grad, causal_past_only):
    """d(output . grad) / d(span_ratio) with the mask of the authors' code: clamp((R + z - x) / R, 0, 1) by torch's
    clamp, which passes gradient at both ends; it multiplies the softmax, which is then renormalised."""
    ratio = attention.span.span_ratio.detach().clone().requires_grad_()
    steps, heads, size = x.size(0), attention.num_heads, attention.head_dim
    q, k, v = (
        getattr(attention, f"{n}_proj")(x)[:, 0].view(steps, heads, size).transpose(0, 1).detach() for n in "qkv"
    )
    logits = q @ k.transpose(1, 2) * size**-0.5
    distance = torch.arange(steps)[:, None] - torch.arange(steps)[None, :]
    if causal_past_only:  # SpanAttention: strictly before, x counts from the nearest
        index = (distance - 1).clamp(min=0)
        logits = logits + torch.einsum("htd,tsd->hts", q, POSITIONS[index]) * size**-0.5
        visible, x_distance = distance >= 1, index
    else:
        visible, x_distance = torch.ones(steps, steps, dtype=torch.bool), distance.abs()
    soft = (attention.span.ramp - x_distance + ratio.view(-1, 1, 1) * attention.span.max_span) / attention.span.ramp
    weights = torch.softmax(logits.masked_fill(~visible, -1e30), -1) * soft.clamp(0, 1) * visible
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)
    out = attention.out_proj((weights @ v).transpose(0, 1).reshape(steps, 1, -1))
    return torch.autograd.grad((out * grad).sum(), ratio)[0]


POSITIONS = torch.randn(80, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("ramp", [1, 4, 32])
@pytest.mark.parametrize("ratios", [(0.0, 0.0), (0.0, 0.1), (0.03, 0.55), (0.25, 0.5)])
@pytest.mark.parametrize("kind", ["sequential", "decoder", "encoder"])
def test_the_gradient_of_a_span_is_that_of_the_authors(kind, ratios, ramp):
    """At z = 0, where every head starts, and at whole numbers the mask has a corner: its gradient there is the one that
    lets a span grow."""
    torch.manual_seed(3)
    span = AdaptiveSpan(2, 80, ramp)
    if kind == "sequential":
        attention = SpanAttention(16, 2, span).double()
    else:
        scorer = build_scorer("dot_product", AttentionConfig(16, 2))
        attention = SynthAttention(16, 2, scorer, span=span, right_padded=True).double()
    span.span_ratio.data = torch.tensor(ratios, dtype=torch.float64)
    x, grad = torch.randn(60, 1, 16, dtype=torch.float64), torch.randn(60, 1, 16, dtype=torch.float64)
    out = attention(x, POSITIONS) if kind == "sequential" else attention(x, need_weights=kind == "decoder")[0]
    (got,) = torch.autograd.grad((out * grad).sum(), span.span_ratio)
    expected = authors_span_gradient(attention, x, grad, kind == "sequential")
    assert torch.allclose(got, expected, rtol=1e-6, atol=1e-12), (got, expected)


def test_a_span_that_an_optimizer_took_outside_comes_back_at_once():
    """Under --bf16 the optimizer keeps a float32 copy that no clamp reaches. 200 updates push downwards, then the data
    pull back: the head moves after a few updates. (One that had gone on outwards needs about as many as it went.)"""
    span = AdaptiveSpan(1, 100, 4, initial_span=20.0).to(torch.bfloat16)
    master = torch.nn.Parameter(span.span_ratio.detach().float().clone())
    optimizer, zs = torch.optim.Adam([master], lr=0.005), []
    for update in range(230):
        span.span_ratio.grad = None
        loss = span.loss() if update < 200 else -span.loss()
        loss.backward()
        master.grad = span.span_ratio.grad.float()
        optimizer.step()
        with torch.no_grad():
            span.span_ratio.copy_(master)
            span.set_num_updates(update)
        zs.append(float(span.spans()))
    assert zs[199] == 0.0
    assert next(i for i, z in enumerate(zs[200:]) if z > 0) < 20


def test_half_precision_leaves_spans_in_float32():
    """bfloat16 near 0.5 knows steps of 1/512: 16 tokens of 8192."""
    attention = SpanAttention(8, 2, AdaptiveSpan(2, 8192, initial_span=4097.0)).to(torch.bfloat16)
    assert attention.q_proj.weight.dtype == torch.bfloat16
    assert attention.span.span_ratio.dtype == torch.float32 and attention.span.spans().tolist() == [4097.0] * 2
    assert attention.double().span.span_ratio.dtype == torch.float64


@pytest.mark.parametrize("memory", [0, 3])
def test_autocast_at_the_beginning_of_a_stream(memory):
    """Rows before the stream are zeros of the type that autocast gave the others."""
    torch.manual_seed(1)
    attention = SpanAttention(
        8, 2, AdaptiveSpan(2, 20, 4, 5.0), memory=PersistentMemory(2, memory, 4) if memory else None
    )
    x, positions = torch.randn(6, 3, 8), torch.randn(20, 4)
    full = attention(x, positions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = attention(x, positions)
    mixed.float().pow(2).sum().backward()
    assert torch.allclose(mixed.float(), full, atol=0.05) and attention.span.span_ratio.grad.isfinite().all()
