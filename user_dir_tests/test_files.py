"""Files that appear whole or not at all, and the writers that make them so."""

import numpy as np
import pytest
import torch

from fairseq_synth import checkpoints
from fairseq_synth.commands import plot, results
from fairseq_synth.errors import UsageError
from fairseq_synth.files import whole_file


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_there_stays_until_the_new_file_is_whole(tmp_path):
    path = tmp_path / "table.md"
    path.write_text("old")
    with whole_file(str(path)) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert contents(tmp_path) == {"table.md": b"new"}


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_of_a_file_that_failed(error, tmp_path):
    path = tmp_path / "table.md"
    path.write_text("old")
    with pytest.raises((type(error), UsageError)) as raised, whole_file(str(path)) as file:
        file.write(b"half")
        raise error
    assert contents(tmp_path) == {"table.md": b"old"}
    if isinstance(error, OSError):
        assert "cannot be written, the disk is full" in str(raised.value)


def test_a_place_that_is_none(tmp_path):
    with pytest.raises(UsageError, match="nowhere/x: cannot be written .No such file or directory."):
        with whole_file(str(tmp_path / "nowhere" / "x")):
            pass


def figure(path):
    figures = pytest.importorskip("fairseq_synth.inspection.figures")
    pytest.importorskip("matplotlib")
    figures.save(figures.new_figure(1, 1), path)


WRITERS = {
    "checkpoint": lambda path: checkpoints.write({"model": {"w": torch.zeros(2)}}, path),
    "arrays": lambda path: plot.save_arrays(path, {"a": np.zeros(2)}),
    "text": lambda path: results._write(path, "text"),
    "figure": figure,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_writes_so(name, tmp_path, monkeypatch):
    """The file is renamed into its place, and a failure there leaves none."""
    WRITERS[name](str(tmp_path / "there"))
    assert list(contents(tmp_path)) == ["there"] and contents(tmp_path)["there"]

    def fail(source, target):
        assert source != target
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UsageError, match="missing: cannot be written"):
        WRITERS[name](str(tmp_path / "missing"))
    assert list(contents(tmp_path)) == ["there"]
