"""synth_transformer against fairseq's own transformer: sizes, names, weights, outputs; presets; parameter counts."""

import pytest
import torch
from builders import DOT, own_state, stock
from builders import build as synth

from fairseq_synth.checks.case import tokens
from fairseq_synth.models.transformer import PRESETS
from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.modules.scorers import SCORERS

SMALL = {f"{s}_{k}": v for s in ("encoder", "decoder")
         for k, v in (("layers", 2), ("embed_dim", 16), ("ffn_embed_dim", 24), ("attention_heads", 2))}  # fmt: skip


STOCK_OPTIONS = [
    {},
    {"share_all_embeddings": True},
    {"share_decoder_input_output_embed": True, "encoder_learned_pos": True, "decoder_learned_pos": True},
    {"encoder_normalize_before": True, "decoder_normalize_before": True, "layernorm_embedding": True},
    {"no_token_positional_embeddings": True, "no_scale_embedding": True, "activation_fn": "gelu"},
    {"decoder_output_dim": 8, "decoder_input_dim": 16},
]


@pytest.mark.parametrize("options", STOCK_OPTIONS)
def test_dot_product_is_the_stock_transformer(options):
    ours, theirs = synth(**SMALL, **DOT, **options).eval(), stock(**SMALL, **options).eval()
    a, b = own_state(ours), own_state(theirs)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a), "one seed must give both the same weights"
    theirs.train().eval()  # 0.12.2 leaves its fused path once it has been in training mode
    target = tokens((6, 4, 3), seed=9)
    for pad_left in (False, True):
        source = tokens(pad_left=pad_left)
        lengths = source.ne(1).sum(1)
        got, expected = (m(source, lengths, target)[0][target.ne(1)] for m in (ours, theirs))
        assert torch.allclose(got, expected, atol=1e-5)


# what fairseq's --left-pad-target makes with --num-batch-buckets: the pad before a word predicts it
BETWEEN = torch.tensor([[2, 1, 1, 7, 9, 11], [2, 5, 6, 7, 8, 9], [2, 1, 1, 1, 1, 5]])


def test_pads_between_tokens_as_in_fairseq():
    ours, theirs = synth(**SMALL, **DOT).eval(), stock(**SMALL).eval()
    theirs.train().eval()
    source = tokens(pad_left=True)
    got, expected = (m(source, source.ne(1).sum(1), BETWEEN)[0] for m in (ours, theirs))
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("spec", [*SCORERS, "random+dot_product", "random|dot_product"])
def test_a_pad_between_tokens_does_not_see_what_follows(spec):
    model, source = synth(**SMALL, decoder_self_attention=spec).eval(), tokens(pad_left=True)
    before = model(source, source.ne(1).sum(1), BETWEEN)[0]
    for slot in (3, 4, 5):
        changed = BETWEEN.clone()
        changed[:, slot] = 4 + (changed[:, slot] - 3) % 20
        after = model(source, source.ne(1).sum(1), changed)[0]
        assert torch.allclose(after[:, :slot], before[:, :slot], atol=1e-6)
        assert not torch.allclose(after[:, slot], before[:, slot], atol=1e-3)


def test_stock_weights_load_into_dot_product():
    ours, theirs = synth(**SMALL, **DOT), stock(**SMALL)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.1)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in own_state(ours).items())


@pytest.mark.parametrize("spec", ["random", "fixed_random", "factorized_random", "dense", "factorized_dense"])
def test_a_pure_synthesizer_has_no_queries_and_keys(spec):
    model = synth(**SMALL, encoder_self_attention=spec, decoder_self_attention=spec)
    names = [n for n, _ in model.named_parameters() if "self_attn." in n]
    assert not [n for n in names if "q_proj" in n or "k_proj" in n]
    layer = model.decoder.layers[0]
    state = {}
    layer.self_attn(torch.zeros(2, 3, 16), incremental_state=state)
    (cached,) = state.values()
    assert set(cached) == {"prev_value", "prev_key_padding_mask"}


PAPER_COUNTS = [("dot_product", 67), ("fixed_random", 61), ("random", 67), ("random+dot_product", 73)]


@pytest.mark.parametrize("spec, millions", PAPER_COUNTS)
def test_parameter_counts_of_the_paper(spec, millions):
    """Tay et al. 2021, Table 2, N = 256; the vocabulary is the one that makes the Transformer's 67 M."""
    model = synth(symbols=44_600, share_all_embeddings=True, encoder_self_attention=spec, decoder_self_attention=spec)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert round(count / 1e6) == millions


@pytest.mark.parametrize("form, per_layer", [(False, 64 * 64 + 64 + 64 * 32 + 4 * 32), (True, 64 * 64 + 16 * 32)])
def test_parameter_count_of_dense(form, per_layer):
    def count(spec, **options):
        model = synth(**{**SMALL, "encoder_embed_dim": 64, "decoder_embed_dim": 64, "encoder_attention_heads": 4},
                      encoder_self_attention=spec, decoder_self_attention="dot_product", **options)  # fmt: skip
        return sum(p.numel() for p in model.encoder.layers[0].self_attn.parameters())

    base = 2 * (64 * 64 + 64)  # values and output
    options = {"synthesizer_max_length": 32, "synthesizer_share_output": form}
    assert count("dense", **options) == base + per_layer


@pytest.mark.parametrize("arch", sorted(PRESETS))
def test_presets(arch):
    model = synth(arch, synthesizer_max_length=16)
    cfg = model.cfg
    sizes = (cfg.encoder.layers, cfg.decoder.layers, cfg.encoder.embed_dim, cfg.encoder.ffn_embed_dim)
    heads = (cfg.encoder.attention_heads, cfg.decoder.attention_heads)
    expected = {
        "synth_transformer": ((6, 6, 512, 2048), (8, 8)),
        "synth_transformer_tiny": ((4, 4, 128, 256), (4, 4)),
        "synth_transformer_iwslt_de_en": ((6, 6, 512, 1024), (4, 4)),
        "synth_transformer_wmt_en_de": ((6, 6, 512, 2048), (8, 8)),
        "synth_transformer_wmt_en_de_big": ((6, 6, 1024, 4096), (16, 16)),
        "synth_transformer_marian_tiny": ((6, 2, 256, 1536), (8, 8)),
    }
    assert (sizes, heads) == expected[arch]
    assert (len(model.encoder.layers), len(model.decoder.layers)) == sizes[:2]
    assert cfg.decoder.embed_dim == cfg.encoder.embed_dim and cfg.decoder.ffn_embed_dim == cfg.encoder.ffn_embed_dim
    assert model.max_positions() == (16, 16)


def test_layers_take_their_own_scorers():
    model = synth(**{**SMALL, "encoder_layers": 3}, encoder_self_attention="dot_product*2,random",
                  decoder_self_attention="dense,random+dot_product")  # fmt: skip
    kinds = [type(layer.self_attn.scorer).__name__ for layer in model.encoder.layers]
    assert kinds == ["DotProductScorer", "DotProductScorer", "RandomScorer"]
    kinds = [type(layer.self_attn.scorer).__name__ for layer in model.decoder.layers]
    assert kinds == ["DenseScorer", "Mixture"]


def test_cross_attention_is_stock_unless_asked_otherwise():
    for spec, ours in (("dot_product", False), ("random", True), ("dot_product,random", None)):
        model = synth(**SMALL, cross_attention=spec)
        kinds = [isinstance(layer.encoder_attn, SynthAttention) for layer in model.decoder.layers]
        assert kinds == ([False, True] if ours is None else [ours] * 2)


def test_max_positions_is_the_smallest_limit():
    assert synth(**SMALL, synthesizer_max_length=20).max_positions() == (20, 20)
    half = synth(**SMALL, encoder_self_attention="dot_product", synthesizer_max_length=20)
    assert half.max_positions() == (1024, 20)
    assert synth(**SMALL, max_source_positions=10, max_target_positions=12).max_positions() == (10, 12)


def test_pruned_layers_keep_their_scorers():
    model = synth(**{**SMALL, "encoder_layers": 3}, encoder_self_attention="dot_product,random,dense",
                  encoder_layers_to_keep="0,2")  # fmt: skip
    kinds = [type(layer.self_attn.scorer).__name__ for layer in model.encoder.layers]
    assert kinds == ["DotProductScorer", "DenseScorer"]


def test_full_context_alignment_is_refused():
    model, target = synth(**SMALL), tokens((4, 3), seed=9)
    out = model.encoder(tokens((5, 3)))
    with pytest.raises(ValueError, match="full_context_alignment"):
        model.decoder(target, out, full_context_alignment=True)
