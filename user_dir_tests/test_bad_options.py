"""Model options that mean nothing, alone or together: one line, no traceback, no checkpoint."""

import pytest
from builders import build
from conftest import USER_DIR, call_command, line_of, train_args

from fairseq_synth.errors import UsageError

ENCODER, DECODER = "--encoder-self-attention", "--decoder-self-attention"
SPAN = ["--decoder-adaptive-span", "8"]

# name -> (options of a translation model, what the line must say)
TRANSLATION = {
    "span loss nan": ([*SPAN, "--span-loss", "nan"], ["--span-loss nan", "finite"]),
    "span loss inf": ([*SPAN, "--span-loss", "inf"], ["--span-loss inf", "finite"]),
    "span loss negative": ([*SPAN, "--span-loss", "-1"], ["--span-loss -1", "0"]),
    "span ramp negative": ([*SPAN, "--span-ramp", "-4"], ["--span-ramp -4", "at least 1"]),
    "layers negative": (["--encoder-layers", "-2"], ["--encoder-layers -2", "at least 1"]),
    "heads zero": (["--encoder-attention-heads", "0"], ["--encoder-attention-heads 0"]),
    "heads negative": (["--decoder-attention-heads", "-2"], ["--decoder-attention-heads -2"]),
    "dimension zero": (["--encoder-embed-dim", "0"], ["--encoder-embed-dim 0", "at least 1"]),
    "dimension negative": (["--decoder-embed-dim", "-16"], ["--decoder-embed-dim -16", "at least 1"]),
    "feed-forward zero": (["--encoder-ffn-embed-dim", "0"], ["--encoder-ffn-embed-dim 0", "at least 1"]),
    "feed-forward negative": (["--decoder-ffn-embed-dim", "-8"], ["--decoder-ffn-embed-dim -8", "at least 1"]),
    "dropout above 1": (["--dropout", "1.5"], ["--dropout 1.5"]),
    "dropout nan": (["--dropout", "nan"], ["--dropout nan"]),
    "dropout negative": (["--attention-dropout", "-0.1"], ["--attention-dropout -0.1"]),
    "layer dropout": (["--encoder-layerdrop", "2"], ["--encoder-layerdrop 2"]),
    "scalar quantisation": (
        [ENCODER, "factorized_dense", "--quant-noise-scalar", "0.5"], ["--quant-noise-scalar 0.5", "factorized_dense"],
    ),
    "adaptive factor": (["--adaptive-softmax-factor", "2"], ["--adaptive-softmax-factor 2", "--adaptive-softmax-cut"]),
    "adaptive input": (["--adaptive-input"], ["--adaptive-input", "language"]),
    "cutoff not rising": (["--adaptive-softmax-cutoff", "20,10", "--criterion", "adaptive_loss"],
                          ["--adaptive-softmax-cutoff"]),
    "cutoff beyond the vocabulary": (["--adaptive-softmax-cutoff", "10,99999", "--criterion", "adaptive_loss"],
                                     ["--adaptive-softmax-cutoff"]),
    "many layers": ([ENCODER, "random*9999999999"], ["random*9999999999"]),
    "many digits": ([ENCODER, "random*" + "9" * 5000], ["random*999"]),
    "square": ([ENCODER, "random*\u00b2"], ["random*\u00b2", "number of layers"]),
    "square factors": ([ENCODER, "factorized_dense", "--synthesizer-factors", "\u00b2,8"], ["--synthesizer-factors"]),
    "square layers to keep": (["--encoder-layers-to-keep", "\u00b2"], ["--encoder-layers-to-keep"]),
    "endless pattern": (["--freeze", "re:(([a-z0-9._]+)+)+!"], ["--freeze", "(([a-z0-9._]+)+)+!"]),
    "memory of half precision": (
        ["--optimizer", "adagrad_tensor_clip", "--memory-efficient-fp16"],
        ["--memory-efficient-fp16", "adagrad_tensor_clip"],
    ),
}  # fmt: skip

# of the sequential models
SEQUENTIAL = {
    "layers": (["--layers", "0"], ["--layers 0", "at least 1"]),
    "negative layers": (["--layers", "-3"], ["--layers -3", "at least 1"]),
    "heads": (["--attention-heads", "3"], ["--attention-heads 3", "--embed-dim 16"]),
    "dimension": (["--embed-dim", "-16"], ["--embed-dim -16", "at least 1"]),
    "feed-forward": (["--ffn-embed-dim", "-4"], ["--ffn-embed-dim -4"]),
    "limit": (["--attention-span", "0"], ["--attention-span 0", "at least 1"]),
    "negative limit": (["--attention-span", "-8"], ["--attention-span -8", "at least 1"]),
    "initial span": (["--initial-span", "-1"], ["--initial-span -1"]),
    "initial span nan": (["--initial-span", "nan"], ["--initial-span nan"]),
    "initial span beyond": (["--initial-span", "99"], ["--initial-span 99", "--attention-span 32"]),
    "fixed span with a loss": (["--fixed-span", "--initial-span", "4", "--span-loss", "0.1"],
                               ["--fixed-span", "--span-loss 0.1"]),
    "span loss nan": (["--span-loss", "nan"], ["--span-loss nan", "finite"]),
    "ramp": (["--span-ramp", "0"], ["--span-ramp 0", "at least 1"]),
    "memory": (["--persistent-memory", "-2"], ["--persistent-memory -2"]),
    "factor without cutoff": (["--adaptive-factor", "2"], ["--adaptive-factor 2", "--adaptive-cutoff"]),
    "factor": (["--adaptive-cutoff", "10,20", "--adaptive-factor", "0"], ["--adaptive-factor 0"]),
    "cutoff": (["--adaptive-cutoff", "20,10"], ["--adaptive-cutoff 20,10"]),
    "cutoff of text": (["--adaptive-cutoff", "a,b"], ["--adaptive-cutoff a,b"]),
    "dropout": (["--dropout", "1.5"], ["--dropout 1.5"]),
    "embedding dropout": (["--embedding-dropout", "nan"], ["--embedding-dropout nan"]),
}  # fmt: skip
SMALL = {
    "--layers": "1",
    "--embed-dim": "16",
    "--ffn-embed-dim": "16",
    "--attention-heads": "2",
    "--attention-span": "32",
}


@pytest.mark.parametrize("name", TRANSLATION)
def test_translation(name, corpus, tmp_path):
    options, says = TRANSLATION[name]
    line = line_of(call_command, "train", *train_args(corpus, tmp_path, *options, updates=1))
    assert all(part in line for part in says), line
    assert not list(tmp_path.rglob("*.pt"))


@pytest.fixture(scope="module")
def blocks(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("blocks")
    splits = [a for split in ("train", "valid") for a in (f"--{split}pref", corpus.parent / "text" / f"{split}.tgt")]
    call_command("preprocess", "--only-source", *splits, "--destdir", folder, "--srcdict", corpus / "dict.src.txt")
    return folder


@pytest.mark.parametrize("name", SEQUENTIAL)
def test_sequential(name, blocks, tmp_path):
    options, says = SEQUENTIAL[name]
    sizes = [word for pair in SMALL.items() for word in pair]
    arguments = ["--user-dir", USER_DIR, "--task", "streaming_lm", "--arch", "adaptive_span_lm", *sizes,
                 "--tokens-per-sample", "8", "--batch-size", "2", "--optimizer", "adam", "--lr", "0.01",
                 "--max-update", "1", "--save-dir", tmp_path, "--cpu", "--no-progress-bar", "--num-workers", "0",
                 *options]  # fmt: skip
    line = line_of(call_command, "train", blocks, *arguments)
    assert all(part in line for part in says), line
    assert not list(tmp_path.rglob("*.pt"))


def test_an_option_that_only_python_reaches():
    with pytest.raises(UsageError, match="--scale-heads: .* --decoder-attention-dim 8"):
        build(scale_heads=True, decoder_attention_dim=8)
