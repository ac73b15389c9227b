"""The folder of a training: files whole or absent, the newest whole checkpoint, one training at a time."""

import errno
import os
import subprocess
import sys
import types

import pytest
import torch
from conftest import ENVIRONMENT, call_command, train_args
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager
from resume_runs import differences

from fairseq_synth import files as whole_file
from fairseq_synth.compat import save_dir, saving
from fairseq_synth.errors import UsageError, explain

LAST = "checkpoint_last.pt"
OFTEN = ["--save-interval-updates", "1", "--disable-validation"]


def train(corpus, folder, *extra, updates=3):
    return call_command("train", *train_args(corpus, folder, *OFTEN, *extra, updates=updates))


def tear(path, share=0.5):
    with open(path, "r+b") as file:
        file.truncate(int(path.stat().st_size * share))


# ------------------------------------------------------------------------------------------- writing
@pytest.fixture
def full_disk(monkeypatch):
    """Everything written goes to a device that is always full."""
    monkeypatch.setattr(whole_file, "_File", lambda path, stock=whole_file._File: stock("/dev/full"))


@pytest.mark.parametrize("size", [10, 5_000_000])  # within the buffer, and beyond it
def test_a_full_disk_is_called_one(size, full_disk, tmp_path):
    path = tmp_path / LAST
    path.write_bytes(b"before")
    with pytest.raises(UsageError, match=f"{LAST}: cannot be written, the disk is full .*: make room"):
        checkpoint_utils.torch_persistent_save({"model": torch.zeros(size)}, str(path))
    (tmp_path / "other.pt").write_bytes(bytes(size))
    with pytest.raises(UsageError, match="the disk is full"):
        PathManager.copy(str(tmp_path / "other.pt"), str(path), overwrite=True)
    assert path.read_bytes() == b"before"
    assert sorted(os.listdir(tmp_path)) == [LAST, "other.pt"]


def test_a_full_disk_elsewhere_is_one_line_too(tmp_path):
    """fairseq's own files: the folder's dummy, logs."""
    with pytest.raises(OSError) as caught, open("/dev/full", "w") as file:
        print("text", file=file, flush=True)
    caught.value.filename = "runs/log"
    assert explain(caught.value) == "runs/log: cannot be written, the disk is full (or the quota used up): make room"


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / LAST
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), whole_file.whole_file(str(path)) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == [LAST]


def test_an_error_that_passes_is_tried_again(tmp_path, monkeypatch):
    fails = [OSError(errno.EIO, "I/O error"), OSError(errno.ESTALE, "stale")]
    save, pauses = torch.save, []

    def failing(obj, file):
        file.write(b"garbage of the first attempt")
        if fails:
            raise fails.pop()
        file.seek(0)
        save(obj, file)

    monkeypatch.setattr(saving.torch, "save", failing)
    monkeypatch.setattr(saving.time, "sleep", pauses.append)
    checkpoint_utils.torch_persistent_save({"model": torch.ones(3)}, str(tmp_path / LAST))
    assert len(pauses) == 2 and torch.load(tmp_path / LAST)["model"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_file_never_appears_before_it_is_whole(corpus, tmp_path, asynchronous, monkeypatch):
    """At every step of every write, each checkpoint under its own name is whole, and its bytes are on the disk."""
    seen, replace, fsync = [], os.replace, os.fsync
    synced = set()

    def watch(source, target):
        assert os.stat(source).st_ino in synced
        replace(source, target)
        seen.extend(path.name for path in tmp_path.glob("*.pt") if save_dir.is_whole(str(path)) or pytest.fail(path))

    monkeypatch.setattr(whole_file.os, "replace", watch)
    monkeypatch.setattr(whole_file.os, "fsync", lambda number: (fsync(number), synced.add(os.fstat(number).st_ino)))
    if asynchronous:
        monkeypatch.setitem(sys.modules, "iopath", types.ModuleType("iopath"))
    train(corpus, tmp_path, *(["--write-checkpoints-asynchronously"] if asynchronous else []))
    names = {"checkpoint_1_1.pt", "checkpoint_1_2.pt", "checkpoint_1_3.pt", LAST}
    assert set(seen) == names and {p.name for p in tmp_path.glob("*")} == names | {save_dir.LOCK}
    assert differences(tmp_path / "checkpoint_1_3.pt", tmp_path / LAST) == []
    assert not torch.load(tmp_path / LAST)["cfg"]["checkpoint"]["write_checkpoints_asynchronously"] ^ asynchronous


def test_what_goes_wrong_in_the_background_ends_the_training(corpus, tmp_path, full_disk, monkeypatch):
    monkeypatch.setitem(sys.modules, "iopath", types.ModuleType("iopath"))
    with pytest.raises(UsageError, match="the disk is full"):
        train(corpus, tmp_path, "--write-checkpoints-asynchronously")
    assert not list(tmp_path.glob("*.pt*"))


# ------------------------------------------------------------------------------------------- reading
@pytest.mark.parametrize("damage", ["torn", "empty", "zeros", "one bit"])
def test_the_newest_whole_checkpoint_is_taken(corpus, tmp_path, damage):
    train(corpus, tmp_path / "run", updates=3)
    train(corpus, tmp_path / "whole", updates=5)
    folder = tmp_path / "run"
    os.remove(folder / "checkpoint_1_3.pt")
    ruin(folder / LAST, damage)
    text = train(corpus, folder, updates=5)
    assert f"{folder / LAST} is torn or damaged: going on from {folder / 'checkpoint_1_2.pt'}, the newest whole" in text
    assert "(epoch 1 @ 2 updates)" in text
    assert differences(folder / LAST, tmp_path / "whole" / LAST) == []
    assert torch.load(folder / LAST)["cfg"]["checkpoint"]["restore_file"] == LAST


def ruin(path, damage):
    size = path.stat().st_size
    if damage == "one bit":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.write_bytes({"torn": path.read_bytes()[: size // 2], "empty": b"", "zeros": bytes(size)}[damage])


def test_a_torn_checkpoint_alone_is_one_line(corpus, tmp_path):
    train(corpus, tmp_path, "--keep-interval-updates", "1", updates=2)
    for path in tmp_path.glob("*.pt"):
        tear(path)
    with pytest.raises(UsageError, match=rf"{LAST}, \d+ bytes, is torn or damaged, and no whole checkpoint lies besi"):
        train(corpus, tmp_path)


def test_an_absent_checkpoint_is_told(corpus, tmp_path):
    """The user may have removed it to begin anew."""
    train(corpus, tmp_path, updates=2)
    os.remove(tmp_path / LAST)
    other = tmp_path / "checkpoint_1_2.pt"
    text = train(corpus, tmp_path, updates=1)
    assert f"{tmp_path / LAST} is absent: training begins anew (--restore-file {other} goes on from there)" in text


def test_a_file_that_was_named_is_not_replaced(corpus, tmp_path):
    train(corpus, tmp_path)
    named = tmp_path / "checkpoint_1_2.pt"
    tear(named)
    with pytest.raises(Exception, match="") as caught:
        train(corpus, tmp_path, "--restore-file", named)
    assert "checkpoint_1_2.pt" in explain(caught.value)


def test_files_of_an_older_torch_are_taken_for_whole(tmp_path):
    torch.save({"model": torch.zeros(3)}, tmp_path / LAST, _use_new_zipfile_serialization=False)
    assert save_dir.is_whole(str(tmp_path / LAST))


def test_leftovers_of_a_killed_training_are_removed(corpus, tmp_path):
    for name in ("checkpoint_1_2.pt.tmp", "checkpoint_last.pt.tmp", "crash.pt.tmp", "notes.tmp", "other.pt.tmp"):
        (tmp_path / name).write_bytes(b"half")
    train(corpus, tmp_path, updates=1)
    assert sorted(path.name for path in tmp_path.glob("*.tmp")) == ["notes.tmp", "other.pt.tmp"]


# ------------------------------------------------------------------------------------------- the lock
HOLDER = """
import sys, os, time
from fairseq_synth.compat import save_dir
save_dir.hold(sys.argv[1])
if os.fork() == 0:  # as a process that loads data: it survives its parent for a while
    time.sleep(60)
print("held", os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    lines = iter(process.stdout.readline, "")
    assert any(line.startswith("held") for line in lines)
    yield process
    os.killpg(process.pid, 9)
    process.wait()


def test_a_second_training_in_the_folder_is_one_line(corpus, tmp_path, holder):
    message = rf"--save-dir {tmp_path}: another training \(process {holder.pid} on .+\) writes into it; wait"
    with pytest.raises(UsageError, match=message):
        train(corpus, tmp_path, updates=1)
    assert os.listdir(tmp_path) == [save_dir.LOCK]
    train(corpus, tmp_path, "--no-save", updates=1)  # it does not write
    holder.kill()
    holder.wait()
    train(corpus, tmp_path, updates=1)  # although the fork of the killed one lives
    assert (tmp_path / LAST).exists()


def test_the_lock_is_let_go_with_the_training(corpus, tmp_path):
    train(corpus, tmp_path, updates=1)
    assert not save_dir._held
    code = f"from fairseq_synth.compat import save_dir; save_dir.hold({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT, capture_output=True)


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog):
    def lockf(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(save_dir.fcntl, "lockf", lockf)
    assert save_dir.hold(str(tmp_path)) is False
    assert "cannot be locked" in caplog.text and not save_dir._held
