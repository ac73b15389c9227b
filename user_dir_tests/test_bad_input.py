"""Bad input: one line that names the option, its value, the limit and the fix; nothing written."""

import re
import shutil

import pytest
import torch
from conftest import call_command, generate_args, preprocess, run_command, train_args, write_corpus

from fairseq_synth.cli import main as synth_command
from fairseq_synth.errors import explain

ENCODER, DECODER, CROSS = "--encoder-self-attention", "--decoder-self-attention", "--cross-attention"
DOT = [ENCODER, "dot_product", DECODER, "dot_product"]

# (arguments of fairseq-train beyond a small model's, what the line must say)
OPTIONS = {
    "unknown_scorer": ([ENCODER, "randon"], ["--encoder-self-attention randon", "did you mean random", "dense"]),
    "unknown_decoder_scorer": ([DECODER, "sparse"], ["--decoder-self-attention sparse", "factorized_random"]),
    "unknown_cross_scorer": ([CROSS, "dot"], ["--cross-attention dot", "dot_product"]),
    "empty_spec": ([ENCODER, ""], ["--encoder-self-attention ''", "choose from"]),
    "empty_mixture": ([ENCODER, "random+"], ["--encoder-self-attention 'random+'", "missing"]),
    "twice_in_a_mixture": ([ENCODER, "random+random"], ["twice"]),
    "too_many_layers": ([ENCODER, "random,random,random"], ["names 3 layers", "the model has 2"]),
    "too_few_layers": ([DECODER, "random*1"], ["--decoder-self-attention", "names 1 layers", "add up to 2"]),
    "bad_count": ([ENCODER, "random*two"], ["'random*two'", "number of layers"]),
    "factors_product": ([ENCODER, "factorized_dense", "--synthesizer-factors", "5,5"],
                        ["--synthesizer-factors 5,5", "25", "--synthesizer-max-length 256"]),
    "factors_format": ([ENCODER, "factorized_dense", "--synthesizer-factors", "16x16"],
                       ["--synthesizer-factors 16x16", "two whole numbers"]),
    "prime_length": ([ENCODER, "factorized_dense", "--synthesizer-max-length", "251"],
                     ["--synthesizer-max-length 251", "prime", "252"]),
    "encoder_heads": (["--encoder-attention-heads", "3"], ["--encoder-attention-heads 3", "--encoder-embed-dim 16"]),
    "decoder_heads": (["--decoder-attention-heads", "5"], ["--decoder-attention-heads 5", "--decoder-embed-dim 16"]),
    "no_layers": (["--decoder-layers", "0"], ["--decoder-layers 0", "at least 1"]),
    "no_length": (["--synthesizer-max-length", "0"], ["--synthesizer-max-length 0", "at least 1"]),
    "no_rank": ([ENCODER, "factorized_random", "--synthesizer-rank", "0"], ["--synthesizer-rank 0", "at least 1"]),
    "rank_unused": (["--synthesizer-rank", "4"], ["--synthesizer-rank 4", "no effect with", "factorized_random"]),
    "init_unused": ([ENCODER, "dense", DECODER, "dense", "--synthesizer-init", "normal"],
                    ["--synthesizer-init normal", "no effect with dense"]),
    "length_unused": ([*DOT, "--synthesizer-max-length", "64"], ["--synthesizer-max-length 64", "no effect"]),
    "share_output_unused": (["--synthesizer-share-output"], ["--synthesizer-share-output", "use one of dense"]),
    "map_seed_unused": (["--synthesizer-map-seed", "7"], ["--synthesizer-map-seed 7", "fixed_random"]),
    "factors_unused": (["--synthesizer-factors", "16,16"], ["--synthesizer-factors 16,16", "factorized_dense"]),
    "cross_without_cross": ([CROSS, "random", "--no-cross-attention"], ["--cross-attention random", "no effect"]),
    "cross_self_attention": (["--cross-self-attention"], ["--cross-self-attention", "dot_product"]),
    "xformers": (["--encoder-xformers-att-config", "{'name': 'linear'}"],
                 ["--encoder-xformers-att-config", "dot_product"]),
    "layers_to_keep": (["--encoder-layers-to-keep", "0,2"], ["--encoder-layers-to-keep 0,2", "'2'", "from 0 to 1"]),
    "span": (["--encoder-adaptive-span", "-1"], ["--encoder-adaptive-span -1", "0 for no span"]),
    "ramp_unused": (["--span-ramp", "8"], ["--span-ramp 8", "no effect without --encoder-adaptive-span"]),
    "no_ramp": (["--decoder-adaptive-span", "9", "--span-ramp", "0"], ["--span-ramp 0", "at least 1"]),
    "memory": (["--persistent-memory", "-2"], ["--persistent-memory -2"]),
    "keep_feed_forward": (["--keep-feed-forward"], ["--keep-feed-forward", "--persistent-memory"]),
    "embedding_sizes": (["--decoder-embed-dim", "32"], ["--share-all-embeddings"]),
}  # fmt: skip


def line_of(error):
    """What the user would read: one line, or the test fails."""
    line = explain(error) or str(error)
    assert "\n" not in line and line, line
    return line


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_a_wrong_option_is_one_clear_line(name, corpus, tmp_path):
    arguments, says = OPTIONS[name]
    with pytest.raises(ValueError) as error:
        call_command("train", *train_args(corpus, tmp_path, *arguments))
    line = line_of(error.value)
    assert all(part in line for part in says), line
    assert not list(tmp_path.rglob("*.pt"))


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    call_command("train", *train_args(corpus, folder, "--synthesizer-max-length", "16", updates=1))
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def long_corpus(corpus, tmp_path_factory):
    """The same dictionary; validation and test sentences of up to 40 words."""
    root = tmp_path_factory.mktemp("long")
    text = write_corpus(root / "text", {"train": 10, "valid": 20, "test": 20}, longest=40)
    return preprocess(text, root / "bin", "--srcdict", corpus / "dict.src.txt")


def failing(command, *arguments):
    """Run the command in this process and return the line its error makes."""
    with pytest.raises(BaseException) as error:
        call_command(command, *arguments)
    assert not isinstance(error.value, KeyboardInterrupt)
    return line_of(error.value)


def test_a_sentence_longer_than_the_maps(checkpoint, long_corpus):
    line = failing("generate", *generate_args(long_corpus, checkpoint))
    assert "--synthesizer-max-length" in line and "16" in line and "--skip-invalid-size-inputs-valid-test" in line


def test_a_validation_sentence_longer_than_the_maps(long_corpus, tmp_path):
    line = failing("train", *train_args(long_corpus, tmp_path, "--synthesizer-max-length", "12"))
    assert "--synthesizer-max-length" in line and "12" in line


@pytest.mark.parametrize(
    "changed, says",
    [
        (["--encoder-ffn-embed-dim", "32"], "fc1"),
        ([ENCODER, "dense"], "self_attn"),
        (["--synthesizer-max-length", "20"], "scorer.map"),
    ],
)
def test_resuming_with_another_shape(changed, says, checkpoint, corpus, tmp_path):
    shutil.copy(checkpoint, tmp_path)
    before = (tmp_path / checkpoint.name).read_bytes()
    line = failing("train", *train_args(corpus, tmp_path, "--synthesizer-max-length", "16", *changed, updates=3))
    assert says in line and "checkpoint" in line, line
    assert (tmp_path / checkpoint.name).read_bytes() == before


@pytest.mark.parametrize("size", [0, 100, 5000, -200])
def test_a_truncated_checkpoint(size, checkpoint, corpus, tmp_path):
    broken = tmp_path / "broken.pt"
    broken.write_bytes(checkpoint.read_bytes()[:size])
    line = failing("generate", *generate_args(corpus, broken))
    assert "broken.pt" in line and "truncated" in line, line


def test_an_empty_test_set(checkpoint, corpus, tmp_path):
    text = write_corpus(tmp_path / "text", {"train": 3, "valid": 3, "test": 0})
    data = preprocess(text, tmp_path / "bin", "--srcdict", corpus / "dict.src.txt")
    line = failing("generate", *generate_args(data, checkpoint))
    assert "test" in line and ("empty" in line or "no sentence" in line), line


def test_missing_files(checkpoint, corpus, tmp_path):
    assert "nowhere.pt" in failing("generate", *generate_args(corpus, tmp_path / "nowhere.pt"))
    assert "'other'" in failing("generate", *generate_args(corpus, checkpoint, "--gen-subset", "other"))
    assert "folder" in failing("generate", *generate_args(tmp_path / "nothing", checkpoint))


def test_a_value_that_is_no_choice_is_refused_by_the_parser(corpus, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        call_command("train", *train_args(corpus, tmp_path, "--synthesizer-init", "zeros"))
    assert stop.value.code == 2
    assert re.search(r"--synthesizer-init: invalid choice: '?zeros", capsys.readouterr().err)


AVERAGE = {
    "missing": (["nowhere.pt"], "no such checkpoint"),
    "truncated": (["good.pt", "short.pt"], "short.pt: cannot be read"),
    "no_model": (["tensor.pt"], "holds no model"),
    "other_shape": (["good.pt", "other.pt"], "differs in shape from"),
}


@pytest.mark.parametrize("name", sorted(AVERAGE))
def test_average_refuses(name, checkpoint, tmp_path, capsys):
    inputs, says = AVERAGE[name]
    shutil.copy(checkpoint, tmp_path / "good.pt")
    (tmp_path / "short.pt").write_bytes(checkpoint.read_bytes()[:900])
    torch.save(torch.zeros(2), tmp_path / "tensor.pt")
    torch.save({"model": {"x": torch.zeros(2)}}, tmp_path / "other.pt")
    paths = [str(tmp_path / name) for name in inputs]
    assert synth_command(["average", "--inputs", *paths, "--output", str(tmp_path / "out.pt")]) == 2
    err = capsys.readouterr().err
    assert says in err and len(err.strip().splitlines()) == 1
    assert not list(tmp_path.glob("out.pt*"))


@pytest.mark.parametrize("name", ["unknown_scorer", "length_unused"])
def test_the_command_prints_the_line_last_without_a_traceback(name, corpus, tmp_path):
    arguments, says = OPTIONS[name]
    done = run_command("train", *train_args(corpus, tmp_path, *arguments), check=False)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("fairseq_synth: error: ") and all(part in last for part in says)


def test_the_commands_status_for_a_truncated_checkpoint(checkpoint, corpus, tmp_path):
    (tmp_path / "broken.pt").write_bytes(checkpoint.read_bytes()[:3000])
    done = run_command("generate", *generate_args(corpus, tmp_path / "broken.pt"), check=False)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "broken.pt" in done.stderr.strip().splitlines()[-1]
