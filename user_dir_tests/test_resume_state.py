"""What a resumed training must know: its batches, that it has ended, its counters, its float32 weights."""

import multiprocessing
import re
import signal
from argparse import Namespace

import pytest
import torch
from conftest import call_command, train_args
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.trainer import Trainer
from resume_runs import differences

from fairseq_synth.compat import signals
from fairseq_synth.compat.encoder_fast_path import has_fast_path

LAST = "checkpoint_last.pt"
UPDATES = 13  # of an epoch


def train(corpus, folder, *extra, **options):
    return call_command("train", *train_args(corpus, folder, "--save-interval-updates", "1000", *extra, **options))


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.pt")}


# ------------------------------------------------------------------------------------------- batches
@pytest.fixture
def seen(monkeypatch):
    """The sentences of every update, in order."""
    batches, step = [], Trainer.train_step

    def train_step(self, samples, *args, **kwargs):
        batches.append(tuple(sorted(int(i) for sample in samples for i in sample["id"])))
        return step(self, samples, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    return batches


@pytest.mark.parametrize("option", [[], ["--update-ordered-indices-seed"]])
def test_a_resumed_epoch_has_the_batches_of_an_uninterrupted_one(corpus, tmp_path, seen, option):
    options = ["--max-epoch", "3", "--batch-size", "100", *option]
    train(corpus, tmp_path / "whole", *options, updates=0)
    whole, length = list(seen), UPDATES
    assert len(whole) == 3 * length
    first, second = set(whole[:length]), set(whole[length : 2 * length])
    if option or not has_fast_path():  # by itself, fairseq 0.12.2 makes the same batches in every epoch
        assert first != second  # else nothing could go wrong here
    del seen[:]
    train(corpus, tmp_path / "parts", *options, updates=length + 2)
    train(corpus, tmp_path / "parts", *options, updates=0)
    assert seen == whole
    assert differences(tmp_path / "whole" / LAST, tmp_path / "parts" / LAST) == []


def test_the_workers_of_an_epoch_end_with_it(corpus, tmp_path, monkeypatch, capfd):
    """Else they pile up, and those of the next epoch complain about them."""
    alive, begin = [], Trainer.begin_epoch

    def begin_epoch(self, epoch):
        alive.append(len(multiprocessing.active_children()))
        begin(self, epoch)

    monkeypatch.setattr(Trainer, "begin_epoch", begin_epoch)
    train(corpus, tmp_path, "--max-epoch", "4", "--num-workers", "1", "--disable-validation", updates=0)
    assert alive == [0, 0, 0, 0] and not multiprocessing.active_children()
    assert "can only test a child process" not in capfd.readouterr().err


def test_the_batches_of_the_first_epoch_may_be_kept(corpus, tmp_path, seen):
    train(corpus, tmp_path, "--max-epoch", "2", "--batch-size", "100", "--update-epoch-batch-itr", "False", updates=0)
    half = len(seen) // 2
    assert set(seen[:half]) == set(seen[half:])


# ------------------------------------------------------------------------------------------- the end
@pytest.mark.parametrize("arch", ["synth_transformer", "transformer"])
def test_a_finished_training_is_left_alone(corpus, tmp_path, arch):
    train(corpus, tmp_path, arch=arch, updates=3)
    before = contents(tmp_path)
    text = train(corpus, tmp_path, arch=arch, updates=3)
    assert "training is finished, nothing to do: 3 updates made, --max-update 3" in text
    assert contents(tmp_path) == before
    train(corpus, tmp_path, arch=arch, updates=4)  # more was asked for
    assert contents(tmp_path) != before


@pytest.mark.parametrize(
    "limit, line",
    [
        (["--max-epoch", "1"], r"1 epochs made, --max-epoch 1"),
        (["--max-epoch", "9", "--stop-time-hours", "1e-9"], r"trained for 0\.00 hours, --stop-time-hours 1e-09"),
        (["--max-epoch", "9", "--patience", "1", "--lr", "0"], r"1 validations without improvement, --patience 1"),
    ],
)
def test_every_limit_is_an_end(corpus, tmp_path, limit, line):
    train(corpus, tmp_path, *limit, updates=0)
    before = contents(tmp_path)
    assert re.search("training is finished, nothing to do: " + line, train(corpus, tmp_path, *limit, updates=0))
    assert contents(tmp_path) == before


# ------------------------------------------------------------------------------------------- counters
@pytest.fixture
def in_parts(corpus, tmp_path, monkeypatch):
    """Trains in one go and with a stop after `stop` updates; returns where the last checkpoints differ, and one."""
    step = Trainer.train_step

    def train_in_parts(*options, stop):
        def train_step(self, *args, **kwargs):
            result = step(self, *args, **kwargs)
            if self.get_num_updates() == stop:
                signals._NOTICE.number = signal.SIGTERM
            return result

        train(corpus, tmp_path / "whole", *options, updates=0)
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "train_step", train_step)
            with pytest.raises(SystemExit, match="75"):
                train(corpus, tmp_path / "parts", *options, updates=0)
        train(corpus, tmp_path / "parts", *options, updates=0)
        one, two = (tmp_path / name / LAST for name in ("whole", "parts"))
        return differences(one, two), torch.load(two, map_location="cpu")

    return train_in_parts


def test_patience_goes_on_counting(in_parts):
    """Without learning nothing improves: the third epoch is the last one, wherever the training was stopped."""
    options = ["--batch-size", "100", "--max-epoch", "9", "--patience", "2", "--lr", "0"]
    unequal, checkpoint = in_parts(*options, stop=UPDATES + 2)
    assert unequal == []
    assert checkpoint["extra_state"]["train_iterator"]["epoch"] == 4


@pytest.mark.parametrize("stop", [2 * UPDATES, UPDATES + 1])
def test_reduce_lr_on_plateau_goes_on_counting(in_parts, stop):
    """A loss that never improves shrinks the rate after the validations of two epochs.

    The stop may be at the end of an epoch: its validation reaches the scheduler after the save."""
    options = ["--batch-size", "100", "--max-epoch", "5", "--lr-scheduler", "reduce_lr_on_plateau", "--lr-patience",
               "1", "--lr-threshold", "1", "--lr-shrink", "0.5"]  # fmt: skip
    unequal, checkpoint = in_parts(*options, stop=stop)
    assert unequal == []
    assert checkpoint["last_optimizer_state"]["param_groups"][0]["lr"] < 0.01  # it did shrink


# ------------------------------------------------------------------------------------------- half precision
HALF = {
    "bf16": ["--bf16"],
    "fp16": ["--fp16", "--fp16-no-flatten-grads", "--fp16-scale-window", "3", "--fp16-init-scale", "2"],
    "memory-efficient fp16": ["--memory-efficient-fp16", "--fp16-scale-window", "3", "--fp16-init-scale", "2"],
}


@pytest.mark.parametrize("kind", HALF)
def test_float32_weights_survive(in_parts, kind):
    if "fp16" in kind and torch.__version__.startswith("2.2"):
        pytest.skip("PyTorch 2.2 has no half precision LayerNorm on a CPU")
    unequal, _ = in_parts("--batch-size", "100", "--max-epoch", "1", "--lr", "1e-4", *HALF[kind], stop=4)
    assert unequal == []


def test_the_scale_of_amp_survives():
    """There is none on a CPU: a scaler of PyTorch's stands for it."""

    def optimizer():
        wrapped = AMPOptimizer.__new__(AMPOptimizer)
        inner = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        wrapped.fp32_optimizer = Namespace(optimizer=inner)
        wrapped._grad_scaler = torch.cuda.amp.GradScaler(init_scale=8.0, enabled=False)
        wrapped._grad_scaler.state_dict = lambda: {"scale": 2.0}
        wrapped._grad_scaler.load_state_dict = loaded.append
        return wrapped

    loaded = []
    optimizer().load_state_dict(optimizer().state_dict())
    assert loaded == [{"scale": 2.0}]
