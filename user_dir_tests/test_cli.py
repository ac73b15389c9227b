"""The fairseq-synth command."""

import argparse
import dataclasses
import os

import pytest
import torch

from fairseq_synth import checkpoints
from fairseq_synth.cli import main
from fairseq_synth.models.config import SynthTransformerFlatConfig, own_options
from fairseq_synth.modules.scorers import SCORERS

OWN_SCORER = '''
from fairseq_synth.modules.scorers import Logits, Scorer, register_scorer


@register_scorer("uniform_or_not")
class Uniform(Scorer):
    """Every token attends equally to all, or (broken) to the slots before the pads."""

    depends_on = "positions"

    def logits(self, x, q, k, positions):
        return Logits(bias=x.new_zeros({heads}, positions.queries, positions.keys){broken})
'''


@pytest.fixture
def forget_scorer():
    yield
    SCORERS.pop("uniform_or_not", None)


def test_options_lists_everything(capsys):
    assert main(["options"]) == 0
    printed = capsys.readouterr().out
    for word in [
        *SCORERS,
        "synth_transformer_tiny",
        "synth_transformer_lm_gbw",
        "all_attention_lm_wiki103",
        "--persistent-memory",
        "--encoder-self-attention",
        "--cross-attention",
        "--synthesizer-rank",
    ]:
        assert word in printed
    stock = "--encoder-layers "
    assert stock not in printed


def test_own_options_are_ours_and_all():
    """fairseq-train knows the rest without this plugin."""
    from fairseq.models.transformer.transformer_legacy import TransformerModel

    parser = argparse.ArgumentParser()
    TransformerModel.add_args(parser)
    stock = {flag for action in parser._actions for flag in action.option_strings}
    flags = {"--" + f.name.replace("_", "-") for f in own_options(SynthTransformerFlatConfig)}
    names = {f.name for f in dataclasses.fields(SynthTransformerFlatConfig)} - {"_name"}
    derived = {"--decoder-input-dim"}  # fairseq's too, but its parser leaves it out
    assert flags == {"--" + name.replace("_", "-") for name in names} - stock - derived


def test_check_passes_and_fails(capsys, tmp_path, forget_scorer):
    assert main(["check", "factorized_random", "--side", "encoder", "--synthesizer-rank", "3"]) == 0
    assert "all invariants hold" in capsys.readouterr().out
    good = tmp_path / "own_good.py"
    good.write_text(OWN_SCORER.format(heads=2, broken=""))
    assert main(["check", "uniform_or_not", "--import", str(good), "--side", "decoder"]) == 0
    SCORERS.pop("uniform_or_not")
    bad = tmp_path / "own_bad.py"
    bad.write_text(
        OWN_SCORER.format(heads=2, broken=" + 0.1 * x.shape[1] * __import__('torch').arange(positions.keys)")
    )
    assert main(["check", "uniform_or_not", "--import", str(bad), "--side", "decoder"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL decoder" in printed and "FAILED" in printed


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["check", "nothing"], "unknown scorer 'nothing'"),
        (["check", "random", "--import", "nowhere.py"], "nowhere.py: no such Python file"),
    ],
)
def test_check_refuses(arguments, says, capsys):
    assert main(arguments) == 2
    err = capsys.readouterr().err.strip()
    assert says in err and len(err.splitlines()) == 1


def test_average_is_the_mean_and_keeps_what_is_equal(tmp_path):
    fixed, paths = torch.randn(50), []
    for i in range(3):
        state = {"w": torch.full((4,), float(i)), "map": fixed, "flag": torch.tensor([True]), "n": torch.tensor([i])}
        paths.append(str(tmp_path / f"{i}.pt"))
        torch.save({"model": state, "cfg": {"x": i}}, paths[-1])
    checkpoints.average(paths, str(tmp_path / "mean.pt"))
    got = torch.load(tmp_path / "mean.pt", weights_only=True)
    assert torch.equal(got["model"]["w"], torch.ones(4)) and got["cfg"] == {"x": 2}
    assert torch.equal(got["model"]["map"], fixed), "a fixed map must not move by an ulp"
    assert got["model"]["flag"].dtype == torch.bool and int(got["model"]["n"]) == 2


def test_a_reader_that_has_seen_enough(monkeypatch, capsys):
    """fairseq-synth options | head -n 0"""
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr("sys.stdout", open(writer, "w", buffering=1))
    assert main(["options"]) == 1
    assert capsys.readouterr().err == ""


def test_python_dash_m(tmp_path):
    import subprocess
    import sys

    from conftest import ENVIRONMENT

    done = subprocess.run(
        [sys.executable, "-m", "fairseq_synth", "options"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0 and "factorized_dense" in done.stdout and done.stderr == ""
