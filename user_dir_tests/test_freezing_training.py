"""Frozen parameters in the training step: every scorer of the registry, every group; gradients, memory, dropout."""

from argparse import Namespace

import pytest
import torch
from fairseq.modules import FairseqDropout
from test_freezing import ALL_TIED, OUTPUT_TIED, SHORT, SIZES, SMALL, SMALL_LM, build
from test_models import own_state
from torch import nn

from fairseq_synth.checks.case import tokens
from fairseq_synth.errors import UsageError
from fairseq_synth.freezing import digest, frozen_names, record
from fairseq_synth.freezing.model import bare_state, freezes
from fairseq_synth.modules.scorers import SCORERS
from fairseq_synth.modules.span_attention import SpanAttention

SPECS = [*sorted(SCORERS), "random+dot_product", "dense+factorized_random"]
GROUPS = ["embeddings", "attention", "ffn", "layer_norm", "decoder.self_attention", "embeddings,ffn,layer_norm"]


def batch(model):
    """Arguments of a forward pass, left-padded sources, and the target tokens."""
    target = tokens((6, 4, 3), seed=9)
    if not hasattr(model, "encoder"):
        return (target,), target
    source = tokens(pad_left=True)
    return (source, source.ne(1).sum(1), target), target


def loss(model):
    arguments, target = batch(model)
    scores = model.get_normalized_probs(model(*arguments), log_probs=True)
    return -scores.gather(2, target.unsqueeze(2))[target.ne(1)].sum()


def steps(model, count=3):
    """Adam as fairseq makes it: over what needs gradients; weight decay would move zeros' neighbours too."""
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.01, weight_decay=0.1)
    for _ in range(count):
        model.zero_grad()
        loss(model).backward()
        optimizer.step()
    return optimizer


def parts(model):
    """(frozen, trained): copies of the parameters by name."""
    names = set(frozen_names(model))
    copies = {name: p.detach().clone() for name, p in model.named_parameters()}
    return ({n: t for n, t in copies.items() if n in names}, {n: t for n, t in copies.items() if n not in names})


def assert_only_the_rest_trains(model):
    frozen, trained = parts(model)
    optimizer = steps(model)
    after_frozen, after_trained = parts(model)
    assert frozen and digest(after_frozen) == digest(frozen)
    still = [n for n in trained if torch.equal(trained[n], after_trained[n])]
    assert not still, "trained parameters that did not move"
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name
    moments = sum(s["exp_avg"].numel() + s["exp_avg_sq"].numel() for s in optimizer.state.values())
    assert moments == 2 * sum(t.numel() for t in trained.values())


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("spec", SPECS)
def test_every_scorer(spec, group):
    maps = {} if spec == "dot_product" else SHORT
    specs = {"encoder_self_attention": spec, "decoder_self_attention": spec}
    sizes = {**SMALL, "encoder_layers": 1, "decoder_layers": 1}
    assert_only_the_rest_trains(build(**sizes, **specs, **maps, **ALL_TIED, freeze=group))


@pytest.mark.parametrize("spec", SPECS)
def test_every_scorer_in_cross_attention(spec):
    maps = {} if spec == "dot_product" else SHORT
    specs = {"encoder_self_attention": "dot_product", "decoder_self_attention": "dot_product", "cross_attention": spec}
    model = build(**SMALL, encoder_layers=1, decoder_layers=1, **specs, **maps, freeze="cross_attention")
    assert_only_the_rest_trains(model)


OTHER_MODELS = {
    "language_model": ("synth_transformer_lm", {**SMALL_LM, **SHORT, "decoder_layers": 2, **OUTPUT_TIED}),
    "untied": ("synth_transformer", {**SMALL, **SHORT, "encoder_layers": 1, "decoder_layers": 1}),
    "spans": ("synth_transformer", {**SMALL, **SHORT, "encoder_layers": 1, "decoder_layers": 1,
                                    "encoder_adaptive_span": 6, "decoder_adaptive_span": 6, "span_ramp": 2}),
    "memory": ("synth_transformer", {**SMALL, **SHORT, "encoder_layers": 1, "decoder_layers": 1,
                                     "persistent_memory": 3, "keep_feed_forward": True}),
    "sequential": ("adaptive_span_lm", {**SIZES, "layers": 2, "attention_span": 12, "span_ramp": 2,
                                        "initial_span": 2.5}),
    "all_attention": ("all_attention_lm_enwik8_small", {"embed_dim": 16, "attention_heads": 2, "layers": 2,
                                                        "attention_span": 12, "span_ramp": 2, "initial_span": 2.5,
                                                        "persistent_memory": 3}),
}  # fmt: skip


@pytest.mark.parametrize("group", ["embeddings", "attention", "ffn", "layer_norm"])
@pytest.mark.parametrize("name", OTHER_MODELS)
def test_other_models(name, group):
    arch, options = OTHER_MODELS[name]
    model = build(arch, **options, freeze=group, dropout=0.0)
    if name == "sequential":  # three distances: all that the spans reach, so that each vector gets a gradient
        model.decoder.positions.data = model.decoder.positions.data[:3].contiguous()
    frozen, trained = parts(model)
    steps(model)
    after_frozen, after_trained = parts(model)
    assert frozen and digest(after_frozen) == digest(frozen)
    assert not [n for n in trained if torch.equal(trained[n], after_trained[n])]
    assert [n for n, p in model.named_parameters() if p.grad is None] == list(frozen)


def test_the_values_of_a_frozen_model_are_those_of_the_free_one():
    """Freezing comes after the draw: one seed, the same start."""
    free, frozen = build(**SMALL, **SHORT), build(**SMALL, **SHORT, freeze="ffn,attention")
    assert frozen_names(free) == []
    state = frozen.state_dict()
    assert record.KEY in state and record.KEY not in free.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in own_state(free).items())


# ------------------------------------------------------------------ gradients that frozen parts would swallow
def gradients(model):
    torch.manual_seed(3)
    model.train()
    loss(model).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("freeze", ["embeddings", "embeddings,encoder.layers.0", "embeddings,decoder"])
def test_checkpointed_activations_give_the_same_gradients(freeze):
    sizes = {**SMALL, **SHORT, "encoder_layers": 2, "decoder_layers": 2, "dropout": 0.1}
    plain, checkpointed = (build(**sizes, freeze=freeze, checkpoint_activations=c) for c in (False, True))
    expected, got = gradients(plain), gradients(checkpointed)
    assert expected.keys() == got.keys()
    for name, grad in expected.items():
        assert got[name] is not None, name
        torch.testing.assert_close(got[name], grad)


def test_a_step_in_which_all_layers_are_dropped_does_nothing():
    model = build(**SMALL, **SHORT, freeze="embeddings", decoder_layerdrop=1.0)
    grads = gradients(model)
    assert all(g is None or not g.any() for g in grads.values())
    model = build(**SMALL, **SHORT, freeze="embeddings", decoder_layerdrop=0.0)
    assert any(g.any() for g in gradients(model).values())


# ------------------------------------------------------------------ dropout
RATES = {"dropout": 0.1, "attention_dropout": 0.2, "activation_dropout": 0.3}


def rates(model):
    """name -> probability of every dropout."""
    found = {name: m.p for name, m in model.named_modules() if isinstance(m, (FairseqDropout, nn.Dropout))}
    return {**found, **{f"{n}.dropout": m.dropout for n, m in model.named_modules() if isinstance(m, SpanAttention)}}


OFF = {
    "ffn": ["decoder.layers.0.activation_dropout_module", "encoder.layers.0.activation_dropout_module"],
    "attention": ["decoder.layers.0.encoder_attn.dropout_module", "decoder.layers.0.self_attn.dropout_module",
                  "encoder.layers.0.self_attn.dropout_module"],
    "self_attention": ["decoder.layers.0.self_attn.dropout_module", "encoder.layers.0.self_attn.dropout_module"],
    "embeddings": ["decoder.dropout_module", "encoder.dropout_module"],
    "encoder.layers": ["encoder.layers.0.activation_dropout_module", "encoder.layers.0.dropout_module",
                       "encoder.layers.0.self_attn.dropout_module"],
}  # fmt: skip


@pytest.mark.parametrize("freeze", OFF)
def test_dropout_inside_frozen_parts(freeze):
    sizes = {**SMALL, **SHORT, **ALL_TIED, **RATES, "encoder_layers": 1, "decoder_layers": 1}
    free, kept = rates(build(**sizes)), rates(build(**sizes, freeze=freeze))
    assert kept == free and all(free.values())
    removed = rates(build(**sizes, freeze=freeze, frozen_dropout="remove"))
    assert sorted(name for name, p in removed.items() if p == 0) == OFF[freeze]
    assert {n: p for n, p in removed.items() if p} == {n: p for n, p in free.items() if n not in OFF[freeze]}


def test_dropout_inside_frozen_parts_of_sequential_models():
    options = {**SIZES, "layers": 1, "attention_span": 12, "dropout": 0.3, "frozen_dropout": "remove"}
    got = rates(build("adaptive_span_lm", **options, freeze="attention"))
    assert got["decoder.layers.0.feed_forward.2"] == 0.3 and got["decoder.layers.0.self_attn.dropout"] == 0
    got = rates(build("adaptive_span_lm", **options, freeze="ffn"))
    assert got["decoder.layers.0.feed_forward.2"] == 0 and got["decoder.layers.0.self_attn.dropout"] == 0.3


@pytest.mark.parametrize("options", [{"freeze": "layer_norm"}, {"freeze": "ffn", "activation_dropout": 0.0}])
def test_dropout_that_is_nowhere_is_refused(options):
    with pytest.raises(UsageError, match="--frozen-dropout remove: no dropout of this model lies inside --freeze"):
        build(**{**SMALL, **SHORT, **RATES, **options}, frozen_dropout="remove")


def test_removed_dropout_takes_the_noise_out_of_the_frozen_part():
    sizes = {**SMALL, **SHORT, "activation_dropout": 0.5, "dropout": 0.0, "freeze": "ffn"}
    losses = {}
    for choice in ("keep", "remove"):
        model = build(**sizes, frozen_dropout=choice).train()
        losses[choice] = [float(loss(model)) for _ in range(2)]
    assert losses["keep"][0] != losses["keep"][1] and losses["remove"][0] == losses["remove"][1]


# ------------------------------------------------------------------ proof
def test_what_moves_is_named():
    model = build(**SMALL, **SHORT, freeze="ffn").train()
    model.state_dict()
    model.encoder.layers[1].fc1.bias.data[2] = 1e-30
    for check in (model.eval, model.state_dict, model.half):
        with pytest.raises(UsageError, match=r"encoder\.layers\.1\.fc1\.bias moved during training \(1 of 48"):
            check()


def test_another_precision_is_another_start():
    model = build(**SMALL, **SHORT, freeze="ffn").train()
    first = model.frozen_record()["digest"]
    model.bfloat16()
    model.eval()
    second = model.frozen_record()["digest"]
    assert first != second
    model.float()  # the same numbers, written in more bits
    assert model.frozen_record()["digest"] == second


def test_loading_starts_anew():
    model, other = build(**SMALL, **SHORT, freeze="ffn").train(), build(**SMALL, **SHORT)
    nn.init.normal_(other.encoder.layers[0].fc1.weight)
    model.load_state_dict(other.state_dict())
    model.eval()
    assert torch.equal(model.encoder.layers[0].fc1.weight, other.encoder.layers[0].fc1.weight)


def test_the_record_is_left_out_where_tensors_only_are_wanted():
    model = build(**SMALL, **SHORT, freeze="ffn")
    with bare_state(model):
        bare = model.state_dict()
    assert record.KEY not in bare and set(model.state_dict()) == {*bare, record.KEY}
    names = [n for n in model.state_dict(prefix="module.") if n.endswith(record.KEY)]
    assert names == [f"module.{record.KEY}"]


def test_the_model_is_found_inside_wrappers():
    model, wrapper = build(**SMALL, **SHORT, freeze="ffn"), nn.Module()
    wrapper.module = model
    assert freezes(wrapper) is model and freezes(model) is model
    assert freezes(nn.Linear(1, 1)) is None and freezes(Namespace(module=model)) is None
