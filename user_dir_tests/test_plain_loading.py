"""The loader for older PyTorch: what fairseq writes comes back equal, anything that could run is refused."""

import collections
import io
import os
import pickle
import struct
import zipfile
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import call_command, train_args
from hostile import Command

from fairseq_synth.compat import plain_loading
from fairseq_synth.compat.plain_loading import read


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, dict):
        attributes = not isinstance(one, collections.OrderedDict) or same(vars(one), vars(other))
        return (
            list(one) == list(other)
            and type(one) is type(other)
            and attributes
            and same([*one.values()], [*other.values()])
        )
    if isinstance(one, (list, tuple)):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return same(vars(one), vars(other)) if isinstance(one, Namespace) else type(one) is type(other) and one == other


def written(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def test_a_checkpoint_comes_back_equal(corpus, tmp_path):
    """BLEU's counts are numpy arrays; fairseq's own transformer keeps its options in a Namespace."""
    bleu = ["--eval-bleu", "--eval-bleu-args", '{"beam": 1, "max_len_b": 5}']
    call_command("train", *train_args(corpus, tmp_path, *bleu, arch="transformer"))
    path = tmp_path / "checkpoint_last.pt"
    assert same(read(str(path)), torch.load(path, weights_only=False))
    with open(path, "rb") as file:
        assert same(read(file), read(path))


VALUES = [
    {"a": [1, -(2**70), 2.5, None, True, "ä", b"\x00\xff", (1,), {3}, set()]},
    collections.OrderedDict(a=1), Namespace(a=Namespace(b=[1])), collections.defaultdict(list, {"a": [1]}),
    [torch.zeros(3, dtype=getattr(torch, dtype)) for dtype in plain_loading.STORAGES.values()],
    torch.arange(6).view(2, 3).t(), torch.zeros(0), torch.zeros(()), torch.float32, torch.Size([1, 2]),
    torch.nn.Parameter(torch.ones(2)), [np.float64(3.5), np.int64(3)], np.arange(6.0).reshape(2, 3),
    np.zeros(0, dtype=bool), np.float32(1),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=[str(n) for n in range(len(VALUES))])
def test_plain_values_come_back_equal(value):
    assert same(read(written(value)), value)


@pytest.mark.parametrize("place", ["meta", torch.device("meta")])
def test_tensors_go_where_they_are_asked_for(place):
    tensors = read(written([torch.ones(2), torch.zeros(0)]), place)
    assert [tensor.device.type for tensor in tensors] == ["meta", "meta"]


def test_arrays_of_other_byte_order():
    value = np.arange(3, dtype=">i4")
    assert same(read(written(value)), pickle.loads(pickle.dumps(value)))


def test_views_of_one_storage_stay_views():
    base = torch.arange(4.0)
    one, other = read(written([base, base[1:3]]))
    one[1] = 9
    assert other[0] == 9


def pickled(code, storages=()):
    """A checkpoint whose pickle is this program."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", code)
        for key, content in storages:
            archive.writestr(f"archive/data/{key}", content)
    file.seek(0)
    return file


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def storage(elements, kind="FloatStorage", key="0"):
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + b"J" + struct.pack(
        "<i", elements) + b"tQ"  # fmt: skip


def tensor(elements, size, offset=0, stride=1):
    numbers = [b"J" + struct.pack("<i", n) for n in (offset, size, stride)]
    return (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage(elements) + numbers[0] + b"(" + numbers[1] + b"t("
            + numbers[2] + b"t\x89ccollections\nOrderedDict\n)RtR.")  # fmt: skip


def test_a_program_that_is_right():
    """The helpers above make what torch.save makes."""
    assert torch.equal(read(pickled(tensor(2, 2), [("0", struct.pack("<2f", 1, 2))])), torch.tensor([1.0, 2]))


PROGRAMS = {
    "call": b"\x80\x02cposix\nsystem\n(" + text("true") + b"tR.",
    "instance": b"(" + text("true") + b"iposix\nsystem\n.",
    "object": b"(cposix\nsystem\n" + text("true") + b"o.",
    "new": b"\x80\x02cposix\nsystem\n(" + text("true") + b"t\x81.",
    "stack global": b"\x80\x04" + text("posix") + text("system") + b"\x93.",
    "dotted": b"\x80\x04" + text("torch") + text("os.system") + b"\x93.",
    "getattr": b"\x80\x02c__builtin__\ngetattr\n.",
    "extension": b"\x80\x02\x82\x01.",
    "attribute of a class": b"cargparse\nNamespace\n(N}" + text("x") + b"K\x01stb.",
    "state of a list": b"]}" + text("x") + b"K\x01sb.",
    "state of a function": b"ctorch._utils\n_rebuild_tensor_v2\n(N}" + text("x") + b"K\x01stb.",
    "object array": b"cnumpy\ndtype\n(" + text("O8") + b"I0\nI1\ntR.",
    "record array": b"cnumpy\ndtype\n(" + text("V8") + b"I0\nI1\ntR.",
    "other array": b"cnumpy.core.multiarray\n_reconstruct\n(cbuiltins\nlist\n(K\x00t" + text("b") + b"tR.",
    "array too small": tensor(2, 2),
    "no such storage": tensor(2, 2),
    "negative": tensor(2, -2),
    "beyond the storage": tensor(2, 1000),
    "offset": tensor(2, 2, offset=2**30),
    "negative offset": tensor(2, 2, offset=-4),
    "storage that says more": tensor(2**30, 2**30),
    "storage of another type": b"\x80\x02(" + storage(1) + storage(1, "DoubleStorage") + b"t.",
    "unknown storage": b"\x80\x02" + storage(2, "UntypedStorage") + b".",
    "cut off": tensor(2, 2)[:-9],
    "nothing": b"",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_refused(name):
    content = [] if name == "no such storage" else [("0", struct.pack("<2f", 1, 2)[: 7 if "small" in name else 8])]
    with pytest.raises(pickle.UnpicklingError):
        read(pickled(PROGRAMS[name], content))
    assert not hasattr(Namespace, "x")


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_compressed_storage_is_refused(kind):
    """A megabyte of zip is a gigabyte of zeros."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", tensor(2**20, 4))
        archive.writestr("archive/data/0", bytes(2**22), compress_type=kind)
    with pytest.raises(pickle.UnpicklingError, match="compressed"):
        read(file)


@pytest.mark.parametrize("content", [b"", b"PK", pickle.dumps({}), b"\x80\x02N."])
def test_other_formats_are_refused(content):
    with pytest.raises(pickle.UnpicklingError, match="PyTorch before 1.6"):
        read(io.BytesIO(content))


def test_the_old_format_is_refused(tmp_path):
    torch.save({"a": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(pickle.UnpicklingError, match="FAIRSEQ_SYNTH_TRUST=1"):
        read(tmp_path / "old.pt")


def test_where_it_is_used_and_when_not(tmp_path, monkeypatch):
    mark = tmp_path / "mark"
    file = tmp_path / "file.pt"
    torch.save(Command(mark), file)
    stock = torch.serialization.load
    load = plain_loading._plain(lambda f, *args, **kwargs: "stock")
    with pytest.raises(pickle.UnpicklingError, match="GLOBAL posix.mkdir"):
        load(file)
    assert load(file, weights_only=False) == "stock" == load(file, pickle_module=pickle)
    monkeypatch.setenv("FAIRSEQ_SYNTH_TRUST", "1")
    assert load(file) == "stock" and stock and not os.path.exists(mark)
    old = plain_loading.torch_version() < plain_loading.SAFE_TORCH
    assert hasattr(torch.load, "__wrapped__") == old and plain_loading.read_plain_data_only() == old
