"""Heads of different kinds in one layer: ``random:1|dot_product:1``."""

from argparse import Namespace

import pytest
import torch

from fairseq_synth.checks import Case, run
from fairseq_synth.checks.case import dictionary, states, tokens
from fairseq_synth.errors import UsageError
from fairseq_synth.models.config import namespace
from fairseq_synth.models.transformer import SynthTransformerBase
from fairseq_synth.modules.incremental_state import KEYS, VALUES
from fairseq_synth.modules.weighted_sum.choose import watch_ways

FOUR = (("encoder_attention_heads", 4), ("decoder_attention_heads", 4))
SPANS = (("encoder_adaptive_span", 6), ("decoder_adaptive_span", 6), ("span_ramp", 2))
MEMORY = (("persistent_memory", 3),)


def build(**options):
    sizes = {"layers": 2, "embed_dim": 16, "ffn_embed_dim": 24, "attention_heads": 4}
    sizes = {f"{side}_{k}": v for side in ("encoder", "decoder") for k, v in sizes.items()}
    words = dictionary()
    task = Namespace(source_dictionary=words, target_dictionary=words)
    torch.manual_seed(1)
    args = namespace(SynthTransformerBase.defaults, {**sizes, "synthesizer_max_length": 12, "dropout": 0.0, **options})
    return SynthTransformerBase.build_model(args, task).eval()


def answer(model):
    source, target = tokens(pad_left=True), tokens((6, 4, 3), seed=9)
    with torch.no_grad():
        return model(source, source.ne(1).sum(1), target)[0]


@pytest.mark.parametrize("options", [(), SPANS, MEMORY, (*SPANS, *MEMORY)])
@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize("spec", ["random:2|dot_product:2", "dot_product:1|dense+dot_product:2|fixed_random:1"])
def test_invariants(spec, side, options):
    if "dot" not in spec.split("|")[0] and options == MEMORY:
        spec = "|".join(reversed(spec.split("|")))  # keys in the first heads, queries in all
    failed = [o for o in run(spec, (side,), (*FOUR, *options)) if not o.passed]
    assert not failed


def test_only_the_heads_that_need_keys_are_projected_and_cached():
    attention = Case("random:1|dot_product:2|dense:1", "decoder", FOUR).attention()
    assert attention.k_proj.weight.shape == attention.q_proj.weight.shape == (8, 16)
    assert attention.v_proj.weight.shape == (16, 16)
    state, x = {}, states(5, 3)
    attention(x, incremental_state=state, need_weights=False)
    (entry,) = state.values()
    assert entry[KEYS].vectors.shape == (5, 3, 8) and entry[VALUES].vectors.shape == (5, 3, 16)
    with_memory = Case("random:1|dot_product:2|dense:1", "decoder", (*FOUR, *MEMORY)).attention()
    assert with_memory.k_proj.weight.shape == (8, 16) and with_memory.q_proj.weight.shape == (16, 16)


def test_equal_kinds_side_by_side_are_one_kind():
    split, whole = Case("dot_product|dot_product", "encoder").attention(), Case("dot_product", "encoder").attention()
    split.load_state_dict(whole.state_dict())
    x = states(6, 2)
    assert torch.allclose(split(x, need_weights=False)[0], whole(x, need_weights=False)[0], atol=1e-12)
    assert torch.allclose(split(x, need_head_weights=True)[1], whole(x, need_head_weights=True)[1], atol=1e-12)


def test_each_kind_takes_its_own_way():
    attention, x = Case("random|dot_product", "encoder").attention(right_padded=True), states(7, 3)
    pads = torch.arange(7) >= torch.tensor([[7], [5], [2]])
    with watch_ways() as taken:
        attention(x, key_padding_mask=pads, need_weights=False)
    assert taken == ["shared", "blocks"]


def test_frozen_from_a_seed_and_stored_as_one():
    spec = "random:2|factorized_random:1|dot_product:1"
    options = {"encoder_self_attention": spec, "decoder_self_attention": spec, "freeze": "scorer,queries_keys"}
    model = build(**options, frozen_init=3, store_frozen="seed").train().eval()
    frozen = set(model.frozen_parameters)
    assert {n for n, _ in model.named_parameters() if ".scorer." in n or "q_proj" in n or "k_proj" in n} == frozen
    state = model.state_dict()
    assert not frozen & set(state)
    torch.manual_seed(99)
    other = build(**options, frozen_init=3, store_frozen="seed")
    other.load_state_dict(state)
    assert torch.equal(answer(other), answer(model))


def test_numbers_of_heads_are_checked_against_the_layer():
    with pytest.raises(UsageError, match="random:2.dense:1: names 3 heads, but the layer has 4"):
        build(encoder_self_attention="random:2|dense:1")
    assert answer(build(encoder_self_attention="random|dense|dot_product")).isfinite().all()
