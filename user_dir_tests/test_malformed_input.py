"""Input that is damaged, foreign or hostile: one line, and nothing half-written."""

import re
import shutil
import struct
import subprocess
import sys

import pytest
from conftest import ENVIRONMENT, USER_DIR, call_command, generate_args, line_of, run_command, train_args
from hostile import LM, QUIET

from fairseq_synth.cli import main as synth_command
from fairseq_synth.errors import UsageError, explain, one_line, printable


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    call_command("train", *train_args(corpus, folder, updates=1))
    return folder / "checkpoint_last.pt"


@pytest.fixture(scope="module")
def language_model(corpus, tmp_path_factory):
    """(binarised text, checkpoint)"""
    root = tmp_path_factory.mktemp("lm")
    splits = [
        a for split in ("train", "valid", "test") for a in (f"--{split}pref", corpus.parent / "text" / f"{split}.tgt")
    ]
    call_command("preprocess", "--only-source", *splits, "--destdir", root / "bin", "--srcdict",
                 corpus / "dict.src.txt")  # fmt: skip
    call_command("train", root / "bin", "--task", "language_modeling", "--arch", "transformer_lm", *LM, *QUIET,
                 "--optimizer", "adam", "--lr", "0.01", "--max-tokens", "200", "--max-update", "1", "--save-dir",
                 root / "out", "--no-epoch-checkpoints")  # fmt: skip
    return root / "bin", root / "out" / "checkpoint_last.pt"


@pytest.fixture
def data(corpus, tmp_path):
    return shutil.copytree(corpus, tmp_path / "bin")


def command_line(capsys, *arguments):
    """The error of a fairseq-synth command."""
    capsys.readouterr()
    assert synth_command([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    return line


# ---------------------------------------------------------------------- binarised data
def cut(size):
    return lambda content: content[:size]


def patch(position, *values, form="<q"):
    def change(content):
        new = b"".join(struct.pack(form, value) for value in values)
        return content[:position] + new + content[position + len(new) :]

    return change


INDEX = {
    "cut in the header": cut(11), "cut": cut(100), "longer": lambda content: content + bytes(12), "empty": cut(0),
    "magic": patch(0, 1), "version": patch(9, 2), "type": patch(17, 77, form="<B"), "count": patch(18, 2**60),
    "negative count": patch(18, -1), "size": patch(26, 2**31 - 1, form="<i"), "negative size": patch(26, -5, form="<i"),
    "pointer": patch(-8, 2**40), "text": lambda content: b"hello world\n" * 99,
}  # fmt: skip
TOKENS = {"cut": cut(50), "longer": lambda content: content + bytes(64), "foreign token": patch(0, 60000, form="<H")}


@pytest.mark.parametrize("ending, kind", [("idx", k) for k in INDEX] + [("bin", k) for k in TOKENS])
def test_damaged_data(ending, kind, data, checkpoint):
    path = data / f"test.src-tgt.src.{ending}"
    content = path.read_bytes()
    changed = (INDEX if ending == "idx" else TOKENS)[kind](content)
    path.write_bytes(changed)
    assert changed != content
    line = line_of(call_command, "generate", *generate_args(data, checkpoint))
    assert "test.src-tgt.src" in line, line


@pytest.mark.parametrize("ending", ["idx", "bin"])
def test_half_a_split(ending, data, checkpoint):
    (data / f"test.src-tgt.src.{ending}").unlink()
    assert "its other half is missing" in line_of(call_command, "generate", *generate_args(data, checkpoint))


def test_line_counts_that_differ(corpus, data, checkpoint, tmp_path):
    for ending in ("idx", "bin"):
        shutil.copy(corpus / f"valid.src-tgt.tgt.{ending}", data / f"test.src-tgt.tgt.{ending}")
    line = line_of(call_command, "generate", *generate_args(data, checkpoint))
    assert "split 'test' has 13 sentences in the source language and 20 in the target language" in line


@pytest.mark.parametrize("split", ["train", "valid"])
def test_no_target_side(split, data, tmp_path):
    for ending in ("idx", "bin"):
        (data / f"{split}.src-tgt.tgt.{ending}").unlink()
    assert "no target side" in line_of(call_command, "train", *train_args(data, tmp_path / "out"))
    assert not list(tmp_path.rglob("*.pt"))


def test_a_vocabulary_of_another_size(data, checkpoint, tmp_path):
    for side in ("src", "tgt"):
        with open(data / f"dict.{side}.txt", "a") as file:
            file.write("more 1\nwords 1\n")
    line = line_of(call_command, "generate", *generate_args(data, checkpoint))
    assert "embed_tokens.weight" in line and "dictionaries it was trained with" in line
    shutil.copy(checkpoint, tmp_path / "checkpoint_last.pt")
    assert "embed_tokens.weight" in line_of(call_command, "train", *train_args(data, tmp_path))


DICTIONARIES = {
    "bytes": b"w1 3\n\xff\xfe 2\n", "no count": b"w1\nw2\n", "twice": b"w1 3\nw1 3\n", "text": b"w1 many\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", DICTIONARIES)
def test_damaged_dictionaries(kind, data, checkpoint):
    (data / "dict.src.txt").write_bytes(DICTIONARIES[kind])
    assert "dict.src.txt" in line_of(call_command, "generate", *generate_args(data, checkpoint))


def test_text_that_is_not_utf8(corpus, checkpoint, tmp_path):
    text = tmp_path / "raw"
    shutil.copytree(corpus.parent / "text", text)
    for name in ("test.src", "test.tgt"):
        (text / name).rename(text / f"test.src-tgt.{name[5:]}")
    for side in ("src", "tgt"):
        shutil.copy(corpus / f"dict.{side}.txt", text)
    (text / "test.src-tgt.src").write_bytes(b"w1 w2\nw3 \xff\xfe w4\n")
    arguments = generate_args(text, checkpoint, "--dataset-impl", "raw", "-s", "src", "-t", "tgt")
    line = line_of(call_command, "generate", *arguments)
    assert "test.src-tgt.src: byte" in line and "not UTF-8" in line


@pytest.mark.parametrize("way", ["-", "file"])
def test_interactive_goes_on_after_bytes_that_are_not_utf8(way, corpus, checkpoint, tmp_path):
    content = b"w1 w2\nw3 \xff\xfe w4\nw5\n"
    (tmp_path / "input").write_bytes(content)
    command = [sys.executable, "-m", "fairseq_cli.interactive", *map(str, generate_args(corpus, checkpoint))]
    command += ["--input", "-" if way == "-" else str(tmp_path / "input")]
    done = subprocess.run(command, input=content, env=ENVIRONMENT, capture_output=True)
    printed = done.stdout.decode("utf-8")
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert len(re.findall(r"^H-\d", printed, re.M)) == 3 and "line 2: bytes that are not UTF-8" in done.stderr.decode()


# ---------------------------------------------------------------------- checkpoints of another kind
def test_a_checkpoint_of_another_kind(corpus, checkpoint, language_model, tmp_path, capsys):
    blocks, lm = language_model
    evaluate = [blocks, "--path", checkpoint, *QUIET, "--max-tokens", "200"]
    lines = [
        line_of(
            call_command,
            "eval_lm",
            *evaluate,
            "--user-dir",
            USER_DIR,
        ),
        line_of(call_command, "generate", *generate_args(corpus, checkpoint, "--lm-path", checkpoint)),
        line_of(call_command, "train", *train_args(corpus, tmp_path, "--finetune-from-model", lm)),
    ]
    assert all("checkpoint" in line or "model" in line for line in lines), lines
    assert "checkpoint_last.pt: the model that its options describe cannot be built" in lines[0]
    assert "the model does not fit the task" in lines[1]
    line = command_line(capsys, "average", "--inputs", checkpoint, lm, "--output", tmp_path / "a.pt")
    assert "differs in shape" in line and not list(tmp_path.glob("a.pt*"))


# ---------------------------------------------------------------------- what is echoed
HOSTILE = "a\x1b[31mb\nc\x07\u202ed\x00\x9b\udc80"


def test_what_is_echoed_is_one_printable_line():
    for line in (printable(HOSTILE), one_line(UsageError(HOSTILE)), explain(UsageError(HOSTILE))):
        assert line.isprintable() and "\\x1b[31mb\\nc" in line and "\\u202e" in line
    assert printable("x" * 999, 10) == "xxxxxxx..." and printable("größe → 3") == "größe → 3"
    assert (
        explain(UsageError("Caught UsageError in worker 0.\nTrace\nfairseq_synth.errors.UsageError: --n 3: no"))
        == "--n 3: no"
    )


def test_options_with_control_characters(corpus, tmp_path):
    line = line_of(call_command, "train", *train_args(corpus, tmp_path, "--encoder-self-attention", "ran\x1bdom\n"))
    assert "\\x1b" in line and "did you mean random" in line


# ---------------------------------------------------------------------- fairseq-synth check
FILES = {
    "syntax": ("def f(:\n", "line 1"),
    "missing import": ("import os\nimport no_such_module_at_all\n", "line 2: ModuleNotFoundError"),
    "exit": ("import sys\nsys.exit(0)\n", "line 2: SystemExit: 0"),
    "failure": ("raise RuntimeError('x\\x1b\\ny')\n", "RuntimeError: x\\x1b\\ny"),
    "taken": ("from fairseq_synth.modules.scorers.base import Scorer, register_scorer\n\n\n"
              "@register_scorer('random')\nclass Mine(Scorer):\n    pass\n", "already registered"),
    "bytes": ("\0", "SyntaxError"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_check_of_a_file_that_does_not_import(kind, tmp_path, capsys):
    content, says = FILES[kind]
    (tmp_path / "scorer.py").write_text(content)
    line = command_line(capsys, "check", "random", "--import", tmp_path / "scorer.py")
    assert f"--import {tmp_path / 'scorer.py'}: does not import" in line and (says in line or "ValueError" in line)


def test_check_of_a_file_named_like_a_module(tmp_path, capsys):
    """It is the file that is imported, and Python's own module stays."""
    (tmp_path / "html.py").write_text("raise KeyError('this one')\n")
    assert "this one" in command_line(capsys, "check", "random", "--import", tmp_path / "html.py")

    import html

    assert html.escape("<") == "&lt;"


@pytest.mark.parametrize("name", ["my.scorer.py", "my-scorer.py", "os.path.py", ".py"])
def test_import_of_a_file_whose_name_is_no_module(name, capsys, tmp_path):
    (tmp_path / name).write_text("raise ValueError('this one')")
    assert "this one" in command_line(capsys, "check", "random", "--import", tmp_path / name)


OPTIONS = {
    ("--synthesizer-max-length", "0"): "random", ("--synthesizer-max-length", "-3"): "random",
    ("--synthesizer-rank", "0"): "factorized_random", ("--synthesizer-rank", "4"): "random",
    ("--synthesizer-factors", "5,5"): "factorized_dense",
}  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_check_of_a_wrong_option_is_one_error(options, capsys):
    assert f"{options[0]} {options[1]}" in command_line(capsys, "check", OPTIONS[options], *options)


# ---------------------------------------------------------------------- a file that hides a module
@pytest.mark.parametrize("name", ["html", "glob", "random"])
def test_a_file_that_hides_a_module_is_blamed(name, tmp_path):
    (tmp_path / f"{name}.py").write_text("x = 1\n")
    done = subprocess.run([sys.executable, "-c", "import fairseq_synth"], cwd=tmp_path, env=ENVIRONMENT,
                          capture_output=True, text=True)  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and f"{tmp_path / name}.py hides a module of Python's own" in last, last


# ---------------------------------------------------------------------- hydra
HYDRA = {
    "architecture": (["+model._name=no_such_arch"], "no_such_arch"),
    "task": (["+model._name=synth_transformer", "task=translation", "+task.no_such_key=1"], "no_such_key"),
    "type": (["+model._name=synth_transformer", "+model.encoder_layers=many"], "encoder_layers"),
}


@pytest.mark.parametrize("kind", HYDRA)
def test_hydra(kind, corpus, tmp_path):
    options, says = HYDRA[kind]
    common = [f"common.user_dir={USER_DIR}", "common.cpu=true",
              f"task.data={corpus}", f"checkpoint.save_dir={tmp_path / 'out'}", "hydra.run.dir=.",
              "optimization.max_update=1", "dataset.max_tokens=200", "optimizer=adam", "lr_scheduler=fixed",
              "criterion=cross_entropy", *([] if "task=translation" in options else ["task=translation"])]  # fmt: skip
    done = run_command("hydra_train", *common, *options, cwd=tmp_path, check=False)
    last = (done.stderr.strip().splitlines() or [""])[-1]
    assert done.returncode and says in last, done.stderr[-3000:]
    assert not list(tmp_path.rglob("*.pt"))


# ---------------------------------------------------------------------- memory
def test_what_does_not_fit_into_memory(corpus, tmp_path):
    line = line_of(call_command, "train", *train_args(corpus, tmp_path, "--synthesizer-max-length", str(2**23)))
    assert "not enough memory" in line and "GiB" in line
    for error in (MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 3.50 GiB")):
        assert "not enough memory" in explain(error)
