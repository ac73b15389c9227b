"""Components of other sizes: the inner dimension of attention, embeddings with a projection."""

import pytest
import torch
from builders import ALL_TIED, DOT, OUTPUT_TIED, SHORT, SIZES, SMALL, SMALL_LM, build, hypotheses, own_state, stock
from conftest import call_command, generate_args, train_args

from fairseq_synth import checks
from fairseq_synth.checks.case import tokens
from fairseq_synth.errors import UsageError
from fairseq_synth.freezing import frozen_names
from fairseq_synth.modules.scorers import SCORERS

SPECS = [*sorted(SCORERS), "random+dot_product"]
INNER = {"encoder_attention_dim": 6, "decoder_attention_dim": 6}


def shapes(model, part):
    return {n: tuple(p.shape) for n, p in model.named_parameters() if part in n and n.endswith("weight")}


# ------------------------------------------------------------------ attention
@pytest.mark.parametrize("arch", ["synth_transformer", "synth_transformer_lm"])
def test_small_heads(arch):
    """The paper's experiment: queries, keys and values of d/8, in every attention of the model."""
    sizes = SMALL if arch == "synth_transformer" else SMALL_LM
    eighth = {k: 2 for k in INNER if k.split("_")[0] + "_embed_dim" in sizes}
    model = build(arch, **sizes, decoder_self_attention="dot_product", **eighth,
                  **({"encoder_self_attention": "dot_product"} if sizes is SMALL else {}))  # fmt: skip
    for name, shape in shapes(model, "attn.").items():
        if "layer_norm" not in name:
            assert shape == ((16, 2) if "out_proj" in name else (2, 16)), name


def test_the_default_is_the_stock_transformer():
    ours, theirs = build(**SMALL, **DOT, **dict.fromkeys(INNER, 16)), stock(**SMALL)
    a, b = own_state(ours), own_state(theirs)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("side", ["encoder", "decoder", "cross"])
@pytest.mark.parametrize("spec", SPECS)
def test_every_invariant_holds(spec, side):
    options = tuple((k, v) for k, v in INNER.items())
    outcomes = list(checks.run(spec, (side,), options))
    assert outcomes and not [(o.name, o.detail, o.error) for o in outcomes if not o.passed]


def test_sizes_with_spans_and_memory():
    options = {**SMALL, **SHORT, **INNER, "encoder_adaptive_span": 6, "persistent_memory": 3}
    model = build(**options)
    assert model.encoder.layers[0].self_attn.memory.key.shape == (2, 3, 3)
    target = tokens((6, 4, 3), seed=9)
    source = tokens()
    assert model(source, source.ne(1).sum(1), target)[0].isfinite().all()


@pytest.mark.parametrize("arch, more", [("adaptive_span_lm", {}), ("all_attention_lm_enwik8_small",
                                                                     {"persistent_memory": 3})])  # fmt: skip
def test_sequential_models(arch, more):
    model = build(arch, embed_dim=16, attention_heads=2, attention_span=12, layers=1, attention_dim=6, **more).eval()
    assert model.decoder.positions.shape == (12, 3)
    batch = tokens((7, 7, 7))
    whole, state = model(batch)[0], {}
    for step in range(1, 8):
        one = model.decoder(batch[:, :step], incremental_state=state)[0]
        assert torch.allclose(one[:, -1], whole[:, step - 1], atol=1e-5)


REFUSED = [
    ("synth_transformer", {**SMALL, "encoder_attention_dim": 5}, "--encoder-attention-dim 5: must be a positive mult"),
    ("synth_transformer", {**SMALL, "decoder_attention_dim": -2}, "--decoder-attention-dim -2: must be a positive mul"),
    ("synth_transformer", {**SMALL, "embedding_dim": -1}, "--embedding-dim -1: must be a positive size"),
    ("synth_transformer", {**SMALL, "embedding_dim": 4, "decoder_output_dim": 8},
     "--embedding-dim 4: is --decoder-output-dim too, which is 8"),
    ("synth_transformer_lm", {**SMALL_LM, "embedding_dim": 4, "character_embeddings": True},
     "--embedding-dim 4: has no effect with --character-embeddings"),
    ("synth_transformer_lm_wiki103", {**SMALL_LM, "embedding_dim": 4}, "has no effect with --adaptive-input"),
    ("synth_transformer", {**SMALL, **DOT, "decoder_attention_dim": 8, "cross_self_attention": True},
     "--cross-self-attention: changes fairseq's dot-product attention only"),
    ("adaptive_span_lm", {**SIZES, "attention_span": 12, "attention_dim": 5}, "--attention-dim 5: must be a positive"),
    ("adaptive_span_lm", {**SIZES, "attention_span": 12, "embed_dim": 5}, "--embed-dim 5: must be a positive"),
]  # fmt: skip


@pytest.mark.parametrize("arch, options, line", REFUSED)
def test_refused(arch, options, line):
    with pytest.raises(UsageError) as error:
        build(arch, **options)
    assert line in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------ embeddings
@pytest.mark.parametrize("tying", [{}, OUTPUT_TIED, ALL_TIED])
def test_embeddings_with_a_projection(tying):
    model = build(**SMALL, **SHORT, **tying, embedding_dim=4)
    got = {n: s for n, s in shapes(model, "").items() if "layers" not in n}
    expected = {"encoder.embed_tokens.embedding.weight": (24, 4), "encoder.embed_tokens.project_in_dim.weight": (16, 4),
                "decoder.project_in_dim.weight": (16, 4), "decoder.project_out_dim.weight": (4, 16)}  # fmt: skip
    if tying != ALL_TIED:
        expected["decoder.embed_tokens.weight"] = (24, 4)
    if not tying:
        expected["decoder.output_projection.weight"] = (24, 4)
    assert got == expected
    assert frozen_names(build(**SMALL, **SHORT, **tying, embedding_dim=4, freeze="embeddings")) == [
        n for n, _ in model.named_parameters() if n in expected
    ]


def test_the_projection_is_that_of_the_decoder():
    """Same maths on both sides: the scaled embedding, projected."""
    model = build(**SMALL, **SHORT, embedding_dim=4).eval()
    batch = tokens((4, 4))
    embedding = model.encoder.embed_tokens
    expected = 4.0 * embedding.embedding(batch) @ embedding.project_in_dim.weight.t()
    got = model.encoder.forward_embedding(batch)[1]
    assert torch.allclose(got, expected, atol=1e-6)
    # fairseq's decoder scales by the model's dimension, too
    assert model.decoder.embed_scale == model.encoder.embed_scale == 4.0


def test_embeddings_of_language_models():
    model = build("synth_transformer_lm", **SMALL_LM, **SHORT, **OUTPUT_TIED, embedding_dim=4)
    assert model.decoder.embed_tokens.weight.shape == (24, 4)
    assert model.decoder.output_projection.weight is model.decoder.embed_tokens.weight
    assert model(tokens((4, 4)))[0].shape == (2, 4, 24)


def test_the_models_size_is_no_projection():
    model, stock_like = build(**SMALL, **SHORT, embedding_dim=16), build(**SMALL, **SHORT)
    assert model.state_dict().keys() == stock_like.state_dict().keys()


def test_through_the_commands(corpus, tmp_path):
    sizes = ["--embedding-dim", "8", "--encoder-attention-dim", "4", "--decoder-attention-dim", "4"]
    arguments = train_args(corpus, tmp_path, "--synthesizer-max-length", "32", "--freeze", "attention", *sizes)
    call_command("train", *arguments)
    state = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)["model"]
    assert state["encoder.embed_tokens.embedding.weight"].shape[1] == 8
    assert state["decoder.layers.1.encoder_attn.q_proj.weight"].shape == (4, 16)
    assert len(hypotheses(call_command("generate", *generate_args(corpus, tmp_path / "checkpoint_last.pt")))) == 13
