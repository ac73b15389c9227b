"""Options that once trained what could not be used: pruned layers, norms that nobody reads, spans of unequal sides."""

import pytest
import torch
from builders import build, hypotheses
from conftest import call_command, generate_args, train_args

from fairseq_synth.checks.case import tokens
from fairseq_synth.freezing.groups import tied_names

SMALL = {f"{side}_{k}": v for side in ("encoder", "decoder")
         for k, v in (("layers", 2), ("embed_dim", 16), ("ffn_embed_dim", 24), ("attention_heads", 2))}  # fmt: skip


@pytest.mark.parametrize("keep", [("--decoder-layers-to-keep", "1"), ("--encoder-layers-to-keep", "0,1"), (
    "--encoder-layers-to-keep", "1", "--decoder-layers-to-keep", "0")])  # fmt: skip
def test_a_training_with_fewer_layers_can_be_used_and_resumed(keep, corpus, tmp_path):
    call_command("train", *train_args(corpus, tmp_path, *keep))
    checkpoint = tmp_path / "checkpoint_last.pt"
    assert len(hypotheses(call_command("generate", *generate_args(corpus, checkpoint)))) == 13
    log = call_command("train", *train_args(corpus, tmp_path, *keep, updates=3))
    assert "Loaded checkpoint" in log and "num_updates 3" in log


def test_pruning_after_training_still_works(corpus, tmp_path):
    call_command("train", *train_args(corpus, tmp_path, "--encoder-layers", "3", "--decoder-layers", "3"))
    override = "{'encoder_layers_to_keep': '0,2', 'decoder_layers_to_keep': '1'}"
    arguments = generate_args(corpus, tmp_path / "checkpoint_last.pt", "--model-overrides", override)
    assert len(hypotheses(call_command("generate", *arguments))) == 13


@pytest.mark.parametrize("spec", ["random", "random|fixed_random", "dense", "random+dot_product"])
def test_every_norm_before_an_attention_trains(spec):
    model = build(**SMALL, decoder_normalize_before=True, encoder_normalize_before=True, cross_attention=spec)
    source, target = tokens(pad_left=True), tokens((6, 4, 3), seed=9)
    model.train()(source, source.ne(1).sum(1), target)[0].pow(2).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    unread = sum(".encoder_attn_layer_norm." in name for (name, *_) in tied_names(model)) == 0
    assert unread == (spec in ("random", "random|fixed_random"))


def test_an_old_checkpoint_with_the_unread_norm_loads():
    options = dict(decoder_normalize_before=True, cross_attention="random")
    model = build(**SMALL, **options)
    state = model.state_dict()
    for layer in range(2):
        for name in ("weight", "bias"):
            state[f"decoder.layers.{layer}.encoder_attn_layer_norm.{name}"] = torch.ones(16)
    build(**SMALL, **options).load_state_dict(state)


def test_spans_of_sides_with_other_numbers_of_heads_are_logged(corpus, tmp_path):
    heads = ("--encoder-attention-heads", "4", "--decoder-attention-heads", "2")
    spans = ("--encoder-adaptive-span", "8", "--decoder-adaptive-span", "8")
    log = call_command("train", *train_args(corpus, tmp_path, *heads, *spans))
    assert "span_layer_3" in log and "span_mean" in log
