"""Trainings that are killed or asked to stop at random moments and started again end as if nothing had happened.

To the bit: weights, optimizer, learning rate, position in the data, best loss. A few moments per kind of training,
drawn from a fixed seed; FAIRSEQ_SYNTH_KILLS=N draws N of them (about 5 s each).
"""

import os
import random
import signal

import pytest
import resume_runs
from conftest import TINY, USER_DIR, call_command, preprocess, write_corpus

MORE = int(os.environ.get("FAIRSEQ_SYNTH_KILLS", "0"))
COMMON = ["--user-dir", USER_DIR, "--optimizer", "adam", "--lr", "0.01", "--cpu", "--num-workers", "0",
          "--max-epoch", "3", "--save-interval-updates", "3", "--keep-interval-updates", "2",
          "--no-epoch-checkpoints", "--no-progress-bar", "--log-format", "none"]  # fmt: skip
PAIRS = ["--arch", "synth_transformer", *TINY, "--share-all-embeddings", "--max-tokens", "120"]
STREAMS = ["--task", "streaming_lm", "--arch", "adaptive_span_lm", "--layers", "2", "--embed-dim", "16",
           "--ffn-embed-dim", "24", "--attention-heads", "2", "--attention-span", "40", "--span-ramp", "4"]  # fmt: skip
TWO = ["--ddp-backend", "legacy_ddp"]
# name: data, options, processes, moments in every run of the tests
TRAININGS = {
    "translation": ("pairs", PAIRS, 1, 3),
    "frozen and seeded": (
        "pairs",
        [*PAIRS, "--freeze", "embeddings,ffn", "--frozen-init", "7", "--store-frozen", "seed"],
        1,
        1,
    ),
    "language model": (
        "text",
        ["--task", "language_modeling", "--arch", "synth_transformer_lm", "--decoder-layers", "2",
         "--decoder-embed-dim", "16", "--decoder-ffn-embed-dim", "24", "--decoder-attention-heads", "2",
         "--tokens-per-sample", "16", "--max-tokens", "80"],
        1,
        1,
    ),
    "streams": ("text", [*STREAMS, "--tokens-per-sample", "12", "--batch-size", "4"], 1, 2),
    "streams of two processes": ("text", [*STREAMS, "--tokens-per-sample", "8", "--batch-size", "3", *TWO], 2, 2),
    "translation by two processes": ("pairs", [*PAIRS, *TWO], 2, 0),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("resume")
    text = write_corpus(root / "written", {"train": 60, "valid": 20, "test": 13})
    preprocess(text, root / "pairs")
    call_command("preprocess", "--only-source", "--trainpref", text / "train.src", "--validpref", text / "valid.src",
                 "--destdir", root / "text")  # fmt: skip
    return root


def moments(name, count):
    """Kills and requests in turn; the first two of four anywhere, the others in the middle of a save."""
    rng = random.Random(name)
    for number in range(count):
        kind = (signal.SIGKILL, signal.SIGTERM)[number % 2]
        yield resume_runs.Moment(kind, rng.random(), saving=number // 2 % 2 == 1), rng.random()


@pytest.mark.parametrize("name", [name for name, (*_, few) in TRAININGS.items() if few or MORE])
def test_nothing_is_lost(name, data, tmp_path):
    kind, options, workers, few = TRAININGS[name]
    arguments = [data / kind, *options, *COMMON, "--save-dir"]
    whole = tmp_path / "undisturbed"
    like = resume_runs.train([*arguments, whole], tmp_path / "undisturbed.log", [None] * workers)
    assert like.statuses == [0] * workers, like.text[-3000:]
    for number, (moment, draw) in enumerate(moments(name, MORE or few)):
        rank = 0 if moment.saving else int(draw * workers)  # only the first process writes
        folder, log = tmp_path / str(number), tmp_path / f"{number}.log"
        disturbed = [moment if rank == i else None for i in range(workers)]
        stopped = resume_runs.train([*arguments, folder], log, disturbed, like)
        assert stopped.statuses[rank] in ((0, 75) if moment.signal == signal.SIGTERM else (0, -signal.SIGPROF)), moment
        again = resume_runs.train([*arguments, folder], log, [None] * workers)
        assert again.statuses == [0] * workers, again.text[-3000:]
        last = "checkpoint_last.pt"
        assert resume_runs.differences(whole / last, folder / last) == [], (moment, rank, stopped.text[-3000:])
        assert sorted(os.listdir(folder)) == sorted(os.listdir(whole)), moment


def test_a_difference_would_be_seen(data, tmp_path):
    """Another seed: weights, optimizer and losses differ."""
    arguments = [data / "pairs", *PAIRS, *COMMON, "--save-dir"]
    for name, seed in (("one", "1"), ("two", "2")):
        resume_runs.train([*arguments, tmp_path / name, "--seed", seed], tmp_path / "log")
    found = resume_runs.differences(*(tmp_path / name / "checkpoint_last.pt" for name in ("one", "two")))
    for part in ("model.encoder.embed_tokens.weight", "optimizer.state.0.exp_avg", "validation", "best"):
        assert part in found
