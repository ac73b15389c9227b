"""The invariants over the registry, in every place of the model; and that each of them can fail."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_synth.checks import INVARIANTS, Case, check_one, run, training
from fairseq_synth.checks.case import states
from fairseq_synth.modules.scorers import SCORERS, Logits, Scorer, register_scorer
from fairseq_synth.modules.scorers.base import takers
from fairseq_synth.modules.scorers.random import RandomScorer
from fairseq_synth.modules.weighted_sum import blocks, choose

HEADS = ["random|dot_product", "dense:1|factorized_random+dot_product:1"]
MIXTURES = ["random+dot_product", "dense+dot_product", "dense+random", "factorized_random+factorized_dense"]
SPECS = sorted(SCORERS) + MIXTURES + HEADS
SPANS = {"encoder_adaptive_span": 6, "decoder_adaptive_span": 6, "span_ramp": 2}
PLACES = [(name, side) for name, inv in INVARIANTS.items() for side in inv.sides]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name, side", PLACES)
def test_invariant(name, side, spec):
    outcome = check_one(INVARIANTS[name], Case(spec, side))
    assert outcome.passed, f"{outcome.detail} (error {outcome.error}, tolerance {outcome.tolerance})"
    if outcome.error is None:
        assert name == "too_long" and spec not in takers("max_length"), outcome.detail


@pytest.mark.parametrize(
    "spec, options",
    [
        ("dense", {"synthesizer_share_output": True}),
        ("factorized_dense", {"synthesizer_factors": "2,6"}),
        ("factorized_random", {"synthesizer_rank": 3, "synthesizer_init": "normal"}),
        ("random", {"encoder_normalize_before": True, "decoder_normalize_before": True}),
        ("random", {"layernorm_embedding": True, "encoder_learned_pos": True, "decoder_learned_pos": True}),
        ("random", SPANS),
        ("dot_product", SPANS),
        ("dense+random", SPANS),
        ("dot_product", {"persistent_memory": 3}),
        ("random", {"persistent_memory": 3, **SPANS}),
        ("factorized_dense+dot_product", {"persistent_memory": 3, "keep_feed_forward": True, **SPANS}),
        ("random+dot_product", {"share_all_embeddings": True, "no_token_positional_embeddings": True}),
    ],
)
@pytest.mark.parametrize("side", ["encoder", "decoder"])
def test_invariants_with_options(spec, options, side):
    failed = [o for o in run(spec, (side,), tuple(options.items())) if not o.passed]
    assert not failed


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(SPECS),
    side=st.sampled_from(["encoder", "decoder"]),
    pads=st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=3),
)
def test_pads_may_stand_anywhere(spec, side, pads):
    attention, mask = Case(spec, side).attention(), torch.tensor(pads)
    mask[:, 4] = False  # every sentence has a token
    x = states(8, len(pads))
    got = attention(x, x, x, key_padding_mask=mask, need_weights=False)[0]
    for b, row in enumerate(mask):
        alone = x[~row][:, b : b + 1]
        expected = attention(alone, alone, alone, need_weights=False)[0]
        assert torch.allclose(got[~row][:, b], expected[:, 0], atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(spec=st.sampled_from(SPECS), chunks=st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_cached_decoding_takes_any_chunks(spec, chunks):
    attention = Case(spec, "decoder").attention()
    chunks = [c for i, c in enumerate(chunks) if sum(chunks[: i + 1]) <= 12]
    x, state, outs, t = states(sum(chunks), 2), {}, [], 0
    for chunk in chunks:
        outs.append(attention(x[t : t + chunk], incremental_state=state, need_weights=False)[0])
        t += chunk
    assert torch.allclose(torch.cat(outs), attention(x, need_weights=False)[0], atol=1e-9)


def test_the_shared_path_equals_the_path_with_weights():
    """Asking for the weights takes the path of one softmax per sentence."""
    for spec in ("random", "fixed_random", "factorized_random"):
        attention, x = Case(spec, "encoder").attention(right_padded=True), states(6, 3)
        mask = torch.arange(6) >= torch.tensor([[6], [4], [1]])
        fast = attention(x, key_padding_mask=mask, need_weights=False)[0]
        slow, weights = attention(x, key_padding_mask=mask, need_head_weights=True)
        assert weights.shape == (2, 3, 6, 6) and float(weights[:, 2, :, 1:].max().detach()) == 0.0
        for b, n in enumerate((6, 4, 1)):
            assert torch.allclose(fast[:n, b], slow[:n, b], atol=1e-12)


def test_the_shared_path_survives_a_maximum_under_a_pad():
    """exp(logits - rowmax) of the real tokens is 0 in float32 here; each sentence needs its own softmax."""
    attention = Case("random", "encoder").attention(right_padded=True).float()
    with torch.no_grad():
        attention.scorer.map[:, :, 3:] = 300.0
    x = states(6, 2).float()
    mask = torch.arange(6) >= torch.tensor([[6], [3]])
    got = attention(x, key_padding_mask=mask, need_weights=False)[0]
    alone = attention(x[:3, 1:], need_weights=False)[0]
    assert torch.allclose(got[:3, 1], alone[:, 0], atol=1e-5)


# ---------------------------------------------------------------------- the checks can fail
class SlotScorer(RandomScorer):
    """Indexes slots: what a port does that forgets left padding."""

    def logits(self, x, q, k, positions):
        return Logits(bias=self.map[:, positions.start : positions.start + positions.queries, : positions.keys])


class FirstRowScorer(RandomScorer):
    """Always starts at row 0: what cached decoding of a published JAX port does."""

    def logits(self, x, q, k, positions):
        return Logits(bias=positions.columns(positions._replace(start=0).rows(self.map)))


class NeighbourScorer(Scorer):
    """Looks at the tokens after it, and across the batch."""

    def logits(self, x, q, k, positions):
        total = x[..., 0].flip(0).cumsum(0).flip(0) + x[..., 1].sum()
        total = total.t()[:, None, :, None].expand(-1, 2, -1, positions.keys)
        return Logits(bias=total * 0.1 * torch.arange(positions.keys))


class UntrainedScorer(RandomScorer):
    """A parameter that nothing uses."""

    def logits(self, x, q, k, positions):
        return Logits(bias=super().logits(x, q, k, positions).full().detach())


class DriftingScorer(RandomScorer):
    """A buffer that every call changes."""

    def __init__(self, attention, options):
        super().__init__(attention, options)
        self.register_buffer("calls", torch.zeros(1))

    def logits(self, x, q, k, positions):
        self.calls += 1
        return super().logits(x, q, k, positions)


class UnsavedScorer(RandomScorer):
    """A plain tensor: never saved, different in every process."""

    def __init__(self, attention, options):
        super().__init__(attention, options)
        self.noise = torch.randn(attention.num_heads, options.max_length, options.max_length)

    def logits(self, x, q, k, positions):
        return Logits(bias=positions.columns(positions.rows(self.map + self.noise.to(self.map))))


class OverflowScorer(RandomScorer):
    """Too large for half precision."""

    def logits(self, x, q, k, positions):
        return Logits(bias=super().logits(x, q, k, positions).full() * 1e5 * 1e5 / 1e10)


class WritingScorer(RandomScorer):
    """Its parameter is written in the forward pass."""

    def logits(self, x, q, k, positions):
        with torch.no_grad():
            self.map.mul_(0.5)
        return super().logits(x, q, k, positions)


@pytest.mark.parametrize(
    "broken, caught",
    [
        (WritingScorer, {"freeze", "reorder", "alone"}),
        (SlotScorer, {"padding"}),
        (FirstRowScorer, {"cached", "reference"}),
        (NeighbourScorer, {"reference", "causality", "alone", "cached", "reorder"}),
        (UntrainedScorer, {"gradients"}),
        (DriftingScorer, {"buffers"}),
        (UnsavedScorer, {"reload"}),
        (OverflowScorer, {"half_precision"}),
    ],
)
def test_a_broken_scorer_is_caught(broken, caught, monkeypatch):
    monkeypatch.setitem(SCORERS, "broken", broken)
    failed = {o.name for o in run("broken", ("encoder", "decoder")) if not o.passed}
    assert caught <= failed


def test_too_long_can_fail(monkeypatch):
    class Silent(RandomScorer):
        """Says that it takes any length, and repeats its last row."""

        def __init__(self, attention, options):
            super().__init__(attention, options)
            self.max_length = _Endless(options.max_length)

    monkeypatch.setitem(SCORERS, "silent", Silent)
    assert not check_one(INVARIANTS["too_long"], Case("silent", "encoder")).passed


class _Endless(int):
    """A limit that nothing is beyond."""

    def __lt__(self, other):
        return False

    __gt__ = __le__ = __ge__ = __lt__


def test_a_way_that_differs_is_caught(monkeypatch):
    def wrong(case):
        outputs, weights = blocks.attend(case)
        return outputs * 1.001, weights

    monkeypatch.setattr(choose, "WAYS", [blocks.WAY._replace(attend=wrong), *choose.WAYS])
    monkeypatch.setattr(training, "WAYS", choose.WAYS)
    assert not check_one(INVARIANTS["ways"], Case("dot_product", "decoder")).passed


def test_registering_a_scorer_is_enough_to_check_it(monkeypatch):
    monkeypatch.setattr("fairseq_synth.modules.scorers.base.SCORERS", SCORERS)
    cls = register_scorer("mine")(type("Mine", (RandomScorer,), {}))
    try:
        assert all(o.passed for o in run("mine", ("encoder",)))
    finally:
        assert SCORERS.pop("mine") is cls
