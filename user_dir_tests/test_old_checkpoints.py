"""Checkpoints that version 0.1.0 wrote: one per family, and what that version answered."""

from pathlib import Path

import pytest
import torch

from fairseq_synth.inspection.loading import open_checkpoint

FOLDER = Path(__file__).parent / "checkpoints_0_1"
EXPECTED = torch.load(FOLDER / "expected.pt", weights_only=True)


def answer(model, source, previous):
    """Log-probabilities B x T x V; sources of different lengths are padded on the left."""
    with torch.no_grad():
        net = model(source, source.ne(1).sum(1), previous) if hasattr(model, "encoder") else model(previous)
        return model.get_normalized_probs(net, log_probs=True)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_checkpoint_of_version_0_1_answers_as_it_did(name):
    expected = EXPECTED[name]
    opened = open_checkpoint(str(FOLDER / f"{name}.pt"))
    got = answer(opened.model, expected["source"], expected["previous"])
    assert torch.allclose(got, expected["log_probs"], rtol=0, atol=1e-6)


def test_the_answers_depend_on_the_weights():
    expected, opened = EXPECTED["translation"], open_checkpoint(str(FOLDER / "translation.pt"))
    with torch.no_grad():
        opened.model.encoder.layers[4].self_attn.scorer.map.mul_(3.0)  # fixed_random: a buffer
    got = answer(opened.model, expected["source"], expected["previous"])
    assert not torch.allclose(got, expected["log_probs"], rtol=0, atol=1e-6)
