"""Failures of fairseq and PyTorch, provoked for real, become one line: option, value, limit, fix."""

import os
import pickle
import subprocess
import sys

import pytest
import torch
from compat_commands import (
    USER_DIR,
    call,
    generate_arguments,
    run,
    train_arguments,
    weights,
    workplace,
)
from conftest import line_of

from fairseq_synth.errors import UsageError, explain, install_excepthook


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    return workplace(tmp_path_factory.mktemp("errors"))


def generate_line(place, split="five", data="pairs", checkpoint="mt/checkpoint_last.pt", extra=()):
    arguments = generate_arguments(place / data, place / checkpoint, split, *extra)
    return line_of(call, "generate", *arguments)


# Which exception speaks


def test_the_usage_error_inside_a_chain_wins():
    def fail():
        try:
            raise UsageError("--option 3: the limit is 2, use 2")
        except UsageError as inner:
            raise RuntimeError("worker failed") from inner

    assert line_of(fail) == "--option 3: the limit is 2, use 2"


def test_a_hidden_context_is_not_followed():
    def fail():
        try:
            raise UsageError("handled already")
        except UsageError:
            raise KeyError("other") from None

    with pytest.raises(KeyError) as caught:
        fail()
    assert explain(caught.value) is None


def test_unknown_exceptions_keep_their_traceback():
    for exc in (KeyError("x"), RuntimeError("CUDA error"), ValueError("no"), EOFError()):
        assert explain(exc) is None


def test_an_error_from_a_data_loading_worker_is_its_last_line():
    trace = "Caught UsageError in worker 0.\n  File x\nfairseq_synth.errors.UsageError: --n 3: no"
    assert explain(UsageError(trace)) == "--n 3: no"


def test_an_error_from_a_spawned_process_is_recognised():
    trace = "-- Process 0 terminated\nTraceback\nfairseq_synth.errors.UsageError: --n 3: no\n"
    assert explain(torch.multiprocessing.ProcessRaisedException(trace, 0, 1)) == "--n 3: no"


# Checkpoints


DAMAGES = {
    "half": lambda content: content[: len(content) // 2],
    "a hundred bytes": lambda content: content[:100],
    "nothing": lambda content: b"",
    "text": lambda content: b"hello world\n",
    "overwritten": lambda content: content[:200] + b"X" * 16 + content[216:],
    "an old pickle": lambda content: pickle.dumps({"model": 1})[:9],
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_checkpoint_is_named(place, damage):
    content = (place / "mt" / "checkpoint_last.pt").read_bytes()
    damaged = place / "damaged.pt"
    damaged.write_bytes(DAMAGES[damage](content))
    line = generate_line(place, checkpoint="damaged.pt")
    if damage == "overwritten" and "checksum" in line:  # where that was, the pickle is
        return
    assert line.startswith(f"checkpoint {damaged}, {damaged.stat().st_size} bytes")
    assert "truncated, corrupt or not a checkpoint" in line


class Command:
    def __reduce__(self):
        return os.getcwd, ()


@pytest.mark.skipif(
    tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 6),
    reason=f"torch {torch.__version__} does not refuse pickled objects by default (2.6 does)",
)
@pytest.mark.parametrize("value, name", [(Command(), "getcwd"), (UsageError("x"), "UsageError")])
def test_a_pickled_object_that_is_not_allowed_is_named(place, value, name):
    torch.save({"model": value}, place / "object.pt")
    line = generate_line(place, checkpoint="object.pt")
    assert f"checkpoint {place / 'object.pt'} holds a pickled object that is not allowed" in line
    assert name in line and "malicious" in line


def test_a_checkpoint_of_another_shape(place):
    overrides = "{'encoder_ffn_embed_dim': 8}"
    line = generate_line(place, extra=("--model-overrides", overrides))
    assert "mt/checkpoint_last.pt does not fit TransformerModel" in line
    assert "encoder.layers.0.fc1" in line and "[16, 16] in the file, [8, 16] in the model" in line


@pytest.mark.parametrize("layers, part", [(2, "is missing from"), (1, "is [16, 16] in the file")])
def test_resuming_with_another_model(place, layers, part):
    options = ("--max-sentences", 8, "--encoder-layers", layers, "--encoder-ffn-embed-dim")
    arguments = train_arguments(place / "pairs", place / "mt", *options, 16 if layers == 2 else 8)
    line = line_of(call, "train", *arguments)
    assert "mt/checkpoint_last.pt does not fit " in line and part in line
    assert weights(place / "mt" / "checkpoint_last.pt")  # nothing was overwritten


def test_a_missing_checkpoint(place):
    line = generate_line(place, checkpoint="none.pt")
    assert line == f"--path {place / 'none.pt'}: no such checkpoint file; check the path"


# Data


def test_a_sentence_longer_than_the_model(place):
    line = generate_line(place, split="long")
    assert "tokens (end of sentence included), the limit is 18:" in line
    assert "--synthesizer-max-length" in line and "--skip-invalid-size-inputs-valid-test" in line


def test_a_split_that_is_not_there(place):
    arguments = generate_arguments(place / "pairs", place / "mt" / "checkpoint_last.pt", "five")
    line = line_of(call, "generate", *arguments, "--gen-subset", "tests")
    expected = f"split 'tests' is not in {place / 'pairs'}: choose one that is there (test, test1"
    assert line.startswith(expected)
    line = line_of(call, "generate", *arguments, "--gen-subset", "test", "--dataset-impl", "raw")
    assert line.startswith(f"split 'test' in {place / 'pairs'} is binarised, --dataset-impl says otherwise")


@pytest.mark.parametrize("languages", [(), ("-s", "de", "-t", "en")])
def test_a_data_folder_that_is_not_there(place, languages):
    line = generate_line(place, data="nowhere", extra=languages)
    assert line.startswith(f"data folder: '{place / 'nowhere'}") and "fairseq-preprocess" in line


def test_a_folder_without_language_pairs(place):
    assert "fairseq-preprocess wrote" in generate_line(place, data="blocks")


def test_validate_without_a_task(place):
    arguments = (place / "pairs", "--path", place / "mt" / "checkpoint_last.pt")
    assert "--task translation" in line_of(call, "validate", *arguments)


def test_an_unknown_configuration_key():
    from fairseq.dataclass.configs import CommonConfig
    from omegaconf import OmegaConf

    def merge():
        OmegaConf.merge(OmegaConf.structured(CommonConfig), {"sede": 1})

    assert "sede" in line_of(merge) and "spelling" in line_of(merge)


# The hook


def test_the_last_line_of_a_failed_command_is_the_explanation(place):
    arguments = generate_arguments(place / "pairs", place / "none.pt", "five")
    result = run("generate", *arguments)
    assert result.status == 1 and "Traceback" not in result.text
    assert result.last_error_line.startswith("fairseq_synth: error: --path ")


HOOKED = """
import sys
sys.excepthook = lambda kind, exc, trace: print("previous", kind.__name__)
sys.path.insert(0, {folder!r})
import errors  # without the package: no need to wait for torch
errors.install_excepthook()
raise {failure}
"""


def hooked(failure, **variables):
    code = HOOKED.format(folder=str(USER_DIR), failure=failure)
    environment = {**os.environ, **variables}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    return done


@pytest.mark.parametrize("failure", ["KeyboardInterrupt()", "KeyError('x')"])
def test_other_exceptions_reach_the_previous_hook(failure):
    assert hooked(failure).stdout == f"previous {failure.split('(')[0]}\n"


@pytest.mark.parametrize("value, shown", [("1", True), ("0", False), ("", False)])
def test_the_traceback_is_shown_on_request_before_the_line(value, shown):
    lines = hooked("errors.UsageError('--n 3: no')", FAIRSEQ_SYNTH_TRACEBACK=value).stderr
    assert lines.splitlines()[-1] == "fairseq_synth: error: --n 3: no"
    assert ("Traceback (most recent call last)" in lines) == shown


def test_installing_twice_changes_nothing():
    install_excepthook()
    hook = sys.excepthook
    install_excepthook()
    assert sys.excepthook is hook
