"""The memory of parallel streams in checkpoints, and tokens of a large vocabulary."""

import signal

import numpy as np
import pytest
import torch
from conftest import USER_DIR, call_command, write_corpus
from fairseq.trainer import Trainer
from resume_runs import differences

from fairseq_synth.compat import signals
from fairseq_synth.modules.stream_memory import Remembered, StreamMemory
from fairseq_synth.tasks.streaming_lm import Streams, StreamText

LAST = "checkpoint_last.pt"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("streams")
    text = write_corpus(root / "written", {"train": 60, "valid": 20})
    call_command("preprocess", "--only-source", "--trainpref", text / "train.src", "--validpref", text / "valid.src",
                 "--destdir", root / "bin")  # fmt: skip
    return root / "bin"


@pytest.fixture
def train(data, monkeypatch):
    """Up to `stop` updates, as a signal stops it; else one epoch."""

    def run(folder, *extra, stop=None):
        options = [data, "--user-dir", USER_DIR, "--task", "streaming_lm", "--arch", "adaptive_span_lm",
                   "--layers", "2", "--embed-dim", "16", "--ffn-embed-dim", "24", "--attention-heads", "2",
                   "--attention-span", "40", "--span-ramp", "4", "--tokens-per-sample", "12", "--batch-size", "4",
                   "--optimizer", "adam", "--lr", "0.01", "--cpu", "--max-epoch", "1", "--no-epoch-checkpoints",
                   "--no-progress-bar", "--disable-validation", "--save-dir", folder, *extra]  # fmt: skip
        step = Trainer.train_step

        def train_step(self, *args, **kwargs):
            result = step(self, *args, **kwargs)
            if self.get_num_updates() == stop:
                signals._NOTICE.number = signal.SIGTERM
            return result

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", train_step)
            if stop is None:
                return call_command("train", *options)
            with pytest.raises(SystemExit, match="75"):
                call_command("train", *options)

    return run


@pytest.mark.parametrize("options", [[], ["--update-freq", "2"], ["--arch", "all_attention_lm_enwik8_small"]])
def test_a_stream_goes_on_with_its_memory(train, tmp_path, options):
    if "--arch" in options:
        options = [*options, "--persistent-memory", "3"]
    train(tmp_path / "whole", *options)
    train(tmp_path / "parts", *options, stop=3)
    (memory,) = torch.load(tmp_path / "parts" / LAST)["extra_state"]["train_iterator"]["memory"]
    assert len(memory) == 1 and len(memory[0]["states"]) >= 2
    for state in memory[0]["states"]:
        assert state.size(1) == 4 and state.untyped_storage().size() == state.numel() * state.element_size()
    assert "starts empty" not in train(tmp_path / "parts", *options)
    assert differences(*(tmp_path / name / LAST for name in ("whole", "parts"))) == []


def test_other_streams_are_told(train, tmp_path):
    train(tmp_path, stop=3)
    text = train(tmp_path, "--batch-size", "3")
    assert "the memory of the streams starts empty, as the checkpoint has workers 1, rows 4, block 12, length" in text
    assert "this run: workers 1, rows 3, block 12" in text


def test_a_checkpoint_without_the_memory_is_told(train, tmp_path):
    train(tmp_path, stop=3)
    checkpoint = torch.load(tmp_path / LAST)
    for name in ("streams", "memory"):
        del checkpoint["extra_state"]["train_iterator"][name]
    checkpoint["model"] = dict(checkpoint["model"])  # without the digests, which older files lack as well
    torch.save(checkpoint, tmp_path / LAST)
    assert "starts empty, as the checkpoint is of a version that did not save it" in train(tmp_path)


def test_every_model_gets_its_own_memory_back():
    """Under new names, in the order of their first block."""
    memory, restored = StreamMemory(), StreamMemory()
    for owner, value in (("b", 1.0), ("a", 2.0)):
        memory.write(owner, Remembered([torch.full((2, 1, 3), value)], None))
    restored.load_state_dict(memory.state_dict())
    restored.to(torch.device("cpu"))
    assert [float(restored.read(owner).states[0].mean()) for owner in ("x", "y", "x")] == [1.0, 2.0, 1.0]
    assert restored.read("z") is None


# ------------------------------------------------------------------------------------------- a large vocabulary
class Symbols:
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def pad(self):
        return 1

    def eos(self):
        return 2


class Lines(list):
    sizes = np.array([5])


@pytest.mark.parametrize("count", [2**15, 2**15 + 1, 2**16 - 1, 2**16, 2**16 + 1, 2**17])
def test_the_largest_token_of_any_vocabulary_is_kept(count):
    tokens = torch.tensor([count - 1, 5, count - 2, count - 1, 2])
    batch = Streams(StreamText(Lines([tokens]), Symbols(count)), rows=1, workers=1, worker=0, block=5)[0]
    assert batch["target"].tolist() == [tokens.tolist()]
    assert batch["net_input"]["src_tokens"].tolist() == [[2, *tokens[:-1].tolist()]]
