"""synth_transformer_lm against fairseq's transformer_lm, and through the language modelling commands."""

import re
from argparse import Namespace

import pytest
import torch
from builders import build_lm, hypotheses, last_number, own_state, task
from conftest import USER_DIR, WORDS, call_command, write_corpus
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.models.transformer_lm import TransformerLanguageModel, TransformerLanguageModelConfig

from fairseq_synth.checks.case import tokens
from fairseq_synth.errors import explain
from fairseq_synth.models.config import flat_options
from fairseq_synth.models.transformer_lm import PRESETS

SMALL = {"decoder_layers": 2, "decoder_embed_dim": 16, "decoder_ffn_embed_dim": 24, "decoder_attention_heads": 2}
FLAGS = [a for k, v in SMALL.items() for a in ("--" + k.replace("_", "-"), str(v))]
SPECS = ["dot_product", "random", "fixed_random", "factorized_random", "dense", "factorized_dense",
         "random+dot_product", "dense,random+dot_product"]  # fmt: skip


def stock(**options):
    torch.manual_seed(1)
    config = TransformerLanguageModelConfig()
    values = {**vars(config), "decoder_input_dim": 16, "decoder_output_dim": 16, "max_target_positions": 64,
              "tokens_per_sample": 64, "add_bos_token": False, **options}  # fmt: skip
    return TransformerLanguageModel.build_model(Namespace(**values), task())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"share_decoder_input_output_embed": True, "decoder_learned_pos": True},
        {"decoder_normalize_before": True, "no_decoder_final_norm": True, "scale_fc": True, "scale_attn": True},
        {"adaptive_input": True, "adaptive_input_cutoff": "8,12", "adaptive_softmax_cutoff": "8,12",
         "adaptive_input_factor": 4, "adaptive_softmax_factor": 4, "tie_adaptive_weights": True},
        {"character_embeddings": True},
    ],
)  # fmt: skip
def test_dot_product_is_stock(options):
    ours = build_lm(**SMALL, decoder_self_attention="dot_product", max_target_positions=64, **options).eval()
    theirs = stock(**SMALL, **options).eval()
    a, b = own_state(ours), own_state(theirs)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    batch = tokens((7, 7, 7))
    assert torch.allclose(ours(batch)[0], theirs(batch)[0], atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"synth_transformer_lm"}))
def test_presets_are_those_of_fairseq(name):
    stock_args = Namespace()
    ARCH_CONFIG_REGISTRY[name.replace("synth_", "")](stock_args)
    ours = flat_options(Namespace(), ARCH_MODEL_REGISTRY[name].defaults)
    for option, value in vars(stock_args).items():
        if option not in ("base_shuffle", "add_bos_token"):
            assert ours[option] == value, option


# ---------------------------------------------------------------------- the commands
@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Binarised monolingual text."""
    root = tmp_path_factory.mktemp("lm")
    write_corpus(root, {"train": 150, "valid": 30, "test": 30}, longest=12)
    prefixes = [a for s in ("train", "valid", "test") for a in (f"--{s}pref", root / f"{s}.src")]
    call_command("preprocess", "--only-source", *prefixes, "--destdir", root / "bin")
    return root / "bin"


def train(text, folder, *extra, updates=2):
    call_command("train", text, "--user-dir", USER_DIR, "--task", "language_modeling", "--arch",
                 "synth_transformer_lm", *FLAGS, "--optimizer", "adam", "--lr", "0.01", "--max-tokens", "256",
                 "--max-update", updates, "--save-dir", folder, "--cpu", "--no-progress-bar",
                 "--no-epoch-checkpoints", "--num-workers", "0", *extra)  # fmt: skip
    return folder / "checkpoint_last.pt"


def eval_lm(text, checkpoint, *extra):
    return call_command("eval_lm", text, "--user-dir", USER_DIR, "--path", checkpoint, "--cpu",
                        "--no-progress-bar", "--num-workers", "0", *extra)  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_train_and_eval_lm(spec, text, tmp_path):
    _train_and_eval_lm(spec, text, tmp_path)


@pytest.mark.parametrize("spec", ["dot_product", "random"])
def test_spans_and_memory(spec, text, tmp_path):
    _train_and_eval_lm(spec, text, tmp_path, "--decoder-adaptive-span", "32", "--persistent-memory", "4")


def _train_and_eval_lm(spec, text, tmp_path, *more):
    limit = [] if spec == "dot_product" else ["--synthesizer-max-length", "40"]
    checkpoint = train(text, tmp_path, "--decoder-self-attention", spec, "--tokens-per-sample", "32", *limit, *more)
    losses = {}
    for name, extra in {
        "same": ["--tokens-per-sample", "32"],
        "shorter": ["--tokens-per-sample", "16"],
        "window": ["--tokens-per-sample", "32", "--context-window", "24"],
        "small_batches": ["--tokens-per-sample", "32", "--batch-size", "1"],
    }.items():
        losses[name] = last_number(r"Loss \(base 2\): ([\d.]+)", eval_lm(text, checkpoint, *extra))
        assert 1.0 < losses[name] < 10.0
    assert losses["same"] == pytest.approx(losses["small_batches"], abs=2e-4)


def test_eval_lm_refuses_blocks_beyond_the_maps(text, tmp_path):
    checkpoint = train(text, tmp_path, "--tokens-per-sample", "32", "--synthesizer-max-length", "32")
    with pytest.raises(ValueError) as error:
        eval_lm(text, checkpoint, "--tokens-per-sample", "48")
    line = explain(error.value)
    assert "--tokens-per-sample" in line and "48" in line and "32" in line


@pytest.mark.parametrize("window", ["16", "20"])
def test_eval_lm_refuses_windows_that_leave_nothing(window, text, tmp_path):
    checkpoint = train(text, tmp_path, "--tokens-per-sample", "32", "--synthesizer-max-length", "32")
    with pytest.raises(Exception) as error:  # noqa: PT011  (fairseq's; explain() says what it means)
        eval_lm(text, checkpoint, "--tokens-per-sample", "16", "--context-window", window)
    assert explain(error.value) == f"--context-window {window}: must be less than --tokens-per-sample 16"


def test_training_blocks_longer_than_the_maps_are_refused(text, tmp_path):
    with pytest.raises(ValueError, match="--tokens-per-sample 64: longer than the model's 32 positions"):
        train(text, tmp_path, "--tokens-per-sample", "64", "--synthesizer-max-length", "32")


@pytest.mark.parametrize("spec", ["random", "random+dot_product", "dot_product"])
def test_generation_from_prompts_of_different_lengths(spec, text, tmp_path):
    """A prompt alone and in a batch is continued alike, and the scores are those of the full pass."""
    limit = [] if spec == "dot_product" else ["--synthesizer-max-length", "40"]
    checkpoint = train(text, tmp_path, "--decoder-self-attention", spec, "--sample-break-mode", "eos",
                       "--tokens-per-sample", "40", *limit, updates=40)  # fmt: skip
    (tmp_path / "prompts").write_text("w1 w2 w3 w4 w5\nw7\nw9 w3 w3\n")
    printed = {}
    for size in (1, 3):
        printed[size] = call_command(
            "interactive", text, "--user-dir", USER_DIR, "--task", "language_modeling", "--path", checkpoint,
            "--cpu", "--beam", "2", "--max-len-b", "16", "--input", tmp_path / "prompts", "--buffer-size", "3",
            "--batch-size", size, "--sample-break-mode", "eos",
        )  # fmt: skip
    one, three = hypotheses(printed[1]), hypotheses(printed[3])
    assert len(one) == len(three) == 3
    for i, (score, words) in one.items():
        assert three[i][1] == words and three[i][0] == pytest.approx(score, abs=1e-3)
        assert set(words.split()) <= set(WORDS)
    assert re.search(r"^w1 w2 w3 w4 w5( |$)", one[0][1])
