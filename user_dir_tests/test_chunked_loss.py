"""The loss in chunks of tokens against fairseq's: values, gradients, shapes, dtypes, and what is held in memory."""

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fairseq_synth.criterions import chunked_loss
from fairseq_synth.criterions.chunked_loss import Problem, chunked_losses

PAD = 1


def inputs(tokens, vocabulary, dim, bias=True, pads=0.3, dtype=torch.float32, seed=1, device="cpu"):
    """features, weight, bias or None, target"""
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(tokens, dim, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, dim, generator=draw).to(dtype).requires_grad_()
    offset = torch.randn(vocabulary, generator=draw).to(dtype).requires_grad_() if bias else None
    target = torch.randint(0, vocabulary, (tokens,), generator=draw)
    target = target.masked_fill(torch.rand(tokens, generator=draw) < pads, PAD)
    return features, weight, offset, target


def whole(features, weight, bias, target, smoothing, reduce=True):
    """As fairseq computes it. Returns loss, nll."""
    log_probs = F.log_softmax(F.linear(features, weight, bias), -1, dtype=max_float(features.dtype))
    return label_smoothed_nll_loss(log_probs, target, smoothing, ignore_index=PAD, reduce=reduce)


def max_float(dtype):
    return dtype if dtype == torch.float64 else torch.float32


def gradients(loss, *operands):
    return torch.autograd.grad(loss, [x for x in operands if x is not None and x.requires_grad])


def close(found, expected, tolerance=1e-5):
    for a, b in zip(found, expected):
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance * max([1e-3, *b.detach().abs().flatten().tolist()])
        )


@pytest.fixture
def chunks_of(monkeypatch):
    def set_size(tokens):
        monkeypatch.setattr(chunked_loss, "chunk_tokens", lambda vocabulary, device: tokens)

    return set_size


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 30), st.integers(2, 20), st.integers(1, 9), st.integers(1, 33), st.sampled_from([0.0, 0.1, 0.9]),
    st.booleans(), st.sampled_from([0.0, 0.4, 1.0]), st.booleans(), st.booleans(), st.integers(0, 99),
)  # fmt: skip
def test_equals_fairseqs(tokens, vocabulary, dim, chunk, smoothing, bias, pads, reduce, left_out, seed):
    """Any number of tokens, chunks and pads, left out as on a CPU or masked as elsewhere; the sum, or one loss per
    token; scaled as by a loss scale."""
    operands = inputs(tokens, vocabulary, dim, bias, pads, torch.float64, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunked_loss, "chunk_tokens", lambda vocabulary, device: chunk)
        if not left_out:
            patch.setattr(chunked_loss._Work, "_tokens_without_pads", lambda self: None)
        found = chunked_losses(*operands, Problem(PAD, smoothing, reduce, count_correct=True))
        factor = torch.rand(found.loss.shape, dtype=torch.float64) + 1
        given_back = gradients((found.loss * factor).sum(), *operands[:3])
    loss, nll = (x if reduce else x.squeeze(1) for x in whole(*operands, smoothing, reduce))
    close((found.loss, found.nll), (loss, nll), 1e-9)
    close(given_back, gradients((loss * factor).sum(), *operands[:3]), 1e-9)
    guessed = F.linear(*operands[:3]).argmax(1)
    assert found.correct == (guessed.eq(operands[3]) & operands[3].ne(PAD)).sum()


@pytest.mark.parametrize("reduce", [True, False])
def test_gradients_are_derivatives(reduce, chunks_of):
    chunks_of(3)
    *operands, target = inputs(8, 7, 4, dtype=torch.float64)

    def loss(*operands):
        return chunked_losses(*operands, target, Problem(PAD, 0.1, reduce)).loss

    assert torch.autograd.gradcheck(loss, operands)


@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1)])
def test_only_what_is_wanted(wanted, chunks_of):
    """A frozen projection gets no gradient, nor do features below which everything is frozen."""
    chunks_of(4)
    operands = inputs(10, 12, 5)
    for operand, want in zip(operands, wanted):
        operand.requires_grad_(bool(want))
    loss = chunked_losses(*operands, Problem(PAD, 0.1)).loss
    close(gradients(loss, *operands[:3]), gradients(whole(*operands, 0.1)[0], *operands[:3]))
    with torch.no_grad():
        assert not chunked_losses(*operands, Problem(PAD, 0.1)).loss.requires_grad


def test_loss_scales_keep_small_gradients_of_float16(chunks_of):
    """A confident model: gradients of 1e-8, which are nothing in float16 before they are scaled."""
    chunks_of(4)
    features, weight, _, _ = inputs(6, 5, 4, bias=False, pads=0.0)
    target = torch.arange(6) % 3 + 2
    with torch.no_grad():
        features.copy_(F.one_hot(target, 5)[:, :4].float() * 4.2)
        features[target == 4] = torch.tensor([-4.2] * 4)
        weight.copy_(torch.cat([torch.eye(4), -torch.ones(1, 4)]) * 4.2)
    exact = gradients(whole(features, weight, None, target, 0.0)[0], features)[0]
    assert 0 < exact.abs().max() < 6e-6  # float16 begins at 6e-8, exactly representable from 6e-5 on
    halves = [x.detach().half().requires_grad_() for x in (features, weight)]
    scale = 2.0**15
    found = gradients(chunked_losses(*halves, None, target, Problem(PAD)).loss * scale, *halves)[0].float() / scale
    torch.testing.assert_close(found, exact, rtol=0.02, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision(dtype, autocast, chunks_of):
    """As near to the exact gradients as fairseq's own, sums over many chunks included."""
    chunks_of(7)
    exact = inputs(200, 40, 16)
    operands = [x if autocast or not x.is_floating_point() else x.detach().to(dtype).requires_grad_() for x in exact]
    reference = whole(*exact, 0.1)[0]
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        found, stock = chunked_losses(*operands, Problem(PAD, 0.1)).loss, whole(*operands, 0.1)[0]
    assert found.dtype == torch.float32
    distance, stocks = ((x.detach() - reference.detach()).abs() for x in (found, stock))
    assert distance < max(1.5 * stocks, 2e-3 * reference.detach())
    results = [gradients(loss, *x[:3]) for loss, x in ((found, operands), (stock, operands), (reference, exact))]
    for ours, theirs, right in zip(*results):
        assert ours.dtype == theirs.dtype
        assert (ours.float() - right).norm() < 1.3 * (theirs.float() - right).norm() + 1e-4 * right.norm()


class Largest(TorchDispatchMode):
    """The most elements that a tensor made inside has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        sizes = [x.untyped_storage().nbytes() // x.element_size() for x in tree_leaves(out) if torch.is_tensor(x)]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reduce", [True, False])
def test_logits_of_all_tokens_are_never_made(dtype, reduce, chunks_of):
    chunks_of(8)
    tokens, vocabulary, dim = 320, 100, 16
    operands = inputs(tokens, vocabulary, dim, dtype=dtype)
    with Largest() as made:
        chunked_losses(*operands, Problem(PAD, 0.1, reduce, count_correct=True)).loss.sum().backward()
    assert made.elements <= max(8 * vocabulary, tokens * dim, vocabulary * dim)
    with Largest() as made:
        whole(*operands, 0.1)[0].backward()
    assert made.elements >= tokens * vocabulary


@pytest.mark.parametrize("vocabulary", [100, 10_000, 32_000, 250_000])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_chunks_are_bounded(vocabulary, device):
    tokens = chunked_loss.chunk_tokens(vocabulary, device)
    bound = chunked_loss.CHUNK_BYTES["cpu"] if device == "cpu" else chunked_loss.CHUNK_BYTES_ELSEWHERE
    assert 4 * vocabulary * tokens <= bound or tokens == chunked_loss.FEWEST_TOKENS
    assert 4 * vocabulary * (tokens + 1) > bound or tokens == chunked_loss.FEWEST_TOKENS
