"""What is in a checkpoint is what was written, of the right kind, and no larger than it looks."""

import functools
import os
import random
import re
import tracemalloc
import zipfile
import zlib
from collections import OrderedDict

import pytest
import torch
from conftest import call_command, generate_args, line_of, train_args
from fairseq import checkpoint_utils

from fairseq_synth.cli import main as synth_command
from fairseq_synth.compat.checkpoint_content import ATTRIBUTE, VARIABLE, check_content, seal, tensors_of
from fairseq_synth.errors import UsageError
from fairseq_synth.freezing import record
from fairseq_synth.seeded import storage

FLIPS = int(os.environ.get("FAIRSEQ_SYNTH_FLIPS", "24"))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A training with Adam, and one that stores a seed for what is frozen."""
    folder = tmp_path_factory.mktemp("content")
    call_command("train", *train_args(corpus, folder / "plain", "--save-interval-updates", "1"))
    seed = ["--freeze", "ffn", "--frozen-init", "7", "--store-frozen", "seed"]
    call_command("train", *train_args(corpus, folder / "seed", *seed, "--store-ema", "--ema-decay", "0.5"))
    return folder / "plain" / "checkpoint_last.pt", folder / "seed" / "checkpoint_last.pt"


def saved(path):
    return torch.load(path, weights_only=True)


# ---------------------------------------------------------------------- bits that flip
def records_of(path):
    """(name, start, size) of every record's bytes in a checkpoint."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            name, extra = (int.from_bytes(file.read(2), "little") for _ in range(2))
            yield info.filename, info.header_offset + 30 + name + extra, info.file_size


def flipped(path, out, position, bit):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    out.write_bytes(content)
    return out


TORCH = tuple(int(number) for number in torch.__version__.split(".")[:2])


def test_a_flipped_bit_names_the_tensor(trained, tmp_path):
    """Anywhere in the tensors: weights, optimizer, moving averages."""
    rng = random.Random(5)
    for path in trained:
        tensors = [(start, size) for name, start, size in records_of(path) if re.search(r"/data/\d+$", name) and size]
        names = {place for place, _ in tensors_of(saved(path))}
        for _ in range(FLIPS // 2):
            start, size = rng.choice(tensors)
            broken = flipped(path, tmp_path / "broken.pt", start + rng.randrange(size), rng.randrange(8))
            line = line_of(checkpoint_utils.load_checkpoint_to_cpu, str(broken))
            found = re.match(rf"checkpoint {broken}: (\w+): (\S+) is not what was written \(\d+ of", line)
            if found is None and TORCH < (2, 10):  # our own reader of zip files compares their checksums first
                assert "Bad CRC-32 for file" in line
                continue
            assert found and f"{found.group(1)}.{found.group(2)}" in names, line


def test_a_flipped_bit_among_the_options_is_found(trained, tmp_path):
    rng = random.Random(6)
    start, size = next(rest for name, *rest in records_of(trained[0]) if name.endswith("data.pkl"))
    for _ in range(FLIPS):
        broken = flipped(trained[0], tmp_path / "broken.pt", start + rng.randrange(size), rng.randrange(8))
        assert "checksum of" in line_of(checkpoint_utils.load_checkpoint_to_cpu, str(broken))


@pytest.mark.parametrize(
    "command", ["train", "generate", "validate", "inspect", "average", "diff-frozen", "materialize"]
)
def test_every_command_refuses_it(command, trained, corpus, tmp_path, capsys):
    state = saved(trained[1])
    name = "encoder.embed_positions.version" if "encoder.embed_positions.version" in state["model"] else None
    name = name or "encoder.layers.0.self_attn.v_proj.weight"
    state["model"][name].view(-1)[0] += 0.5
    path = tmp_path / "checkpoint_last.pt"
    torch.save(state, path)
    if command == "train":
        line = line_of(call_command, "train", *train_args(corpus, tmp_path, "--finetune-from-model", path))
    elif command in ("generate", "validate"):
        extra = ["--task", "translation", "--max-tokens", "200"] if command == "validate" else []
        arguments = [a for a in generate_args(corpus, path) if command == "generate" or a not in GENERATION]
        line = line_of(call_command, command, *arguments, *extra)
    else:
        out = ["--output", str(tmp_path / "out.pt")]
        arguments = {"inspect": [str(path)], "average": ["--inputs", str(path), *out], "materialize": [str(path), *out],
                     "diff-frozen": [str(path), str(path)]}  # fmt: skip
        capsys.readouterr()
        assert synth_command([command, *arguments[command]]) == 2
        (line,) = capsys.readouterr().err.splitlines()
    assert f"model: {name} is not what was written" in line and str(path) in line
    assert not (tmp_path / "out.pt").exists()


GENERATION = ("--beam", "3", "--max-len-b", "12")


def test_the_check_can_be_left_out(trained, corpus, tmp_path, monkeypatch):
    state = saved(trained[0])
    state["model"]["encoder.layers.0.fc1.bias"][0] += 1
    torch.save(state, tmp_path / "changed.pt")
    monkeypatch.setenv(VARIABLE, "0")
    assert "Generate test" in call_command("generate", *generate_args(corpus, tmp_path / "changed.pt"))


# ---------------------------------------------------------------------- what writes digests, and what loads without
def test_files_without_digests_load(trained, corpus, tmp_path):
    state = saved(trained[0])
    torch.save({**state, "model": OrderedDict(state["model"])}, tmp_path / "old.pt")
    assert not hasattr(saved(tmp_path / "old.pt")["model"], ATTRIBUTE)
    assert "Generate test" in call_command("generate", *generate_args(corpus, tmp_path / "old.pt"))


def test_fairseqs_way_to_average_leaves_no_digests(trained, corpus, tmp_path):
    """scripts/average_checkpoints.py: all but the model is the first file's, and the model a new ordered dict."""
    state = saved(trained[0])
    state["model"] = OrderedDict((name, tensor.clone() / 2) for name, tensor in state["model"].items())
    torch.save(state, tmp_path / "average.pt")
    assert "Generate test" in call_command("generate", *generate_args(corpus, tmp_path / "average.pt"))


def test_stock_fairseq_sees_no_more_keys(trained):
    state = saved(trained[0])
    assert getattr(state["model"], ATTRIBUTE)["model"] and hasattr(state["model"], "_metadata")
    assert ATTRIBUTE not in state and not any("digest" in name for name in state["model"])


def test_averages_and_full_checkpoints_have_digests_of_their_own(trained, corpus, tmp_path):
    files = [str(trained[0].parent / f"checkpoint_1_{n}.pt") for n in (1, 2)]
    assert synth_command(["average", "--inputs", *files, "--output", str(tmp_path / "average.pt")]) == 0
    assert synth_command(["materialize", str(trained[1]), "--output", str(tmp_path / "full.pt")]) == 0
    for name in ("average.pt", "full.pt"):
        state = saved(tmp_path / name)
        check_content(state)
        state["model"]["encoder.layers.0.fc1.bias"][0] += 1
        with pytest.raises(UsageError, match="encoder.layers.0.fc1.bias is not what was written"):
            check_content(state)


def test_half_precision_counts_as_it_is_stored():
    weights = OrderedDict(a=torch.randn(3).half(), b=torch.randn(3).bfloat16())
    state = seal({"model": weights})
    for name in weights:
        weights[name] = weights[name].float()
    check_content(state)
    weights["b"][0] += 1
    with pytest.raises(UsageError, match="model: b is not what"):
        check_content(state)


# ---------------------------------------------------------------------- kinds and sizes
STRANGE = {
    "no dict": [1, 2],
    "no model": {"cfg": {}},
    "empty model": {"model": {}},
    "None": {"model": None},
    "text": {"model": {"a": "b"}},
    "an empty record": {"model": {"a": torch.zeros(1), record.KEY: None}},
    "numbered": {"model": {1: torch.zeros(1)}},
    "expanded": {"model": {"a": torch.zeros(1).expand(10**6, 10**6)}},
    "expanded optimizer": {"model": {"a": torch.zeros(9)}, "last_optimizer_state": [torch.zeros(1).expand(10**12)]},
}


@pytest.mark.parametrize("kind", STRANGE)
def test_strange_files_are_one_line_everywhere(kind, corpus, tmp_path, capsys):
    path = tmp_path / "strange.pt"
    torch.save(STRANGE[kind], path)
    lines = [line_of(call_command, "generate", *generate_args(corpus, path))]
    out = ["--output", str(tmp_path / "out.pt")]
    for arguments in (["inspect"], ["average", *out, "--inputs"], ["materialize", *out], ["diff-frozen", str(path)]):
        capsys.readouterr()
        assert synth_command([*arguments, str(path)]) == 2
        lines += capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and all("strange.pt" in line for line in lines), lines
    assert not list(tmp_path.glob("out.pt*"))


def test_the_output_is_a_folder(trained, tmp_path, capsys):
    (tmp_path / "out.pt").mkdir()
    assert synth_command(["materialize", str(trained[1]), "--output", str(tmp_path / "out.pt")]) == 2
    assert "out.pt: is a folder" in capsys.readouterr().err and len(list(tmp_path.iterdir())) == 1


# ---------------------------------------------------------------------- records of what is frozen
def altered(path, out, entry=None, own=None):
    """The file with another seed entry and another record, without digests."""
    state = saved(path)
    weights = dict(state["model"])
    if entry is not None:
        old = record.unpack(weights[storage.KEY])
        weights[storage.KEY] = record.encode({**old, **entry(old)})
    if own is not None:
        weights[record.KEY] = own(weights[record.KEY])
    torch.save({**state, "model": weights}, out)
    return out


@functools.lru_cache(maxsize=None)
def bomb(_):
    """A megabyte that unzips to 200."""
    zipped = zlib.compressobj(1)
    parts = [zipped.compress(b"[" * 2**20) for _ in range(200)]
    return torch.tensor(list(b"".join([*parts, zipped.flush()])))


def unnamed(entry):
    name = next(iter(entry["tensors"]))
    return {"tensors": {**entry["tensors"], "encoder.layers.0.self_attn.v_proj.weight": entry["tensors"][name]}}


def shaped(*shape):
    def change(entry):
        name = next(iter(entry["tensors"]))
        return {"tensors": {**entry["tensors"], name: [list(shape), *entry["tensors"][name][1:]]}}

    return change


ALTERED = {
    "record of None": (lambda entry: {"seed": 8}, lambda old: None, "frozen_record"),
    "another record": (None, lambda old: torch.zeros(2), "frozen_record"),
    "nested record": (None, lambda old: record.encode({"names": [], "digest": ""}), "does not name"),
    "other seed": (lambda entry: {"seed": 8}, None, "not those that were saved|drawn from seed 8"),
    "text for a seed": (lambda entry: {"seed": "x"}, None, "damaged"),
    "negative seed": (lambda entry: {"seed": -1}, None, "damaged"),
    "not named": (unnamed, None, "does not name"),
    "huge": (shaped(10**6, 10**6), None, "GiB"),
    "negative shape": (shaped(-4, -4), None, "damaged"),
    "fraction": (shaped(2.5, 4), None, "damaged"),
    "no shape": (shaped(), None, "damaged"),
    "list for tensors": (lambda entry: {"tensors": [1]}, None, "damaged"),
    "zip bomb": (None, bomb, "damaged"),
}


@pytest.mark.parametrize("kind", ALTERED)
def test_an_altered_record_is_refused_by_every_command(kind, trained, corpus, tmp_path, capsys):
    entry, own, says = ALTERED[kind]
    path = altered(trained[1], tmp_path / "altered.pt", entry, own)
    lines = [line_of(call_command, "generate", *generate_args(corpus, path))]
    out = ["--output", str(tmp_path / "out.pt")]
    for arguments in (["inspect"], ["average", *out, "--inputs"], ["materialize", *out], ["diff-frozen", str(path)]):
        capsys.readouterr()
        assert synth_command([*arguments, str(path)]) == 2, arguments
        lines += capsys.readouterr().err.splitlines()
    assert len(lines) == 5 and all(re.search(says, line) for line in lines), lines
    assert not list(tmp_path.glob("out.pt*"))


def test_a_record_unpacks_within_bounds():
    packed = bomb(None)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="damaged"):
            record.decode(packed)
        assert tracemalloc.get_traced_memory()[1] < 3 * record.LARGEST
    finally:
        tracemalloc.stop()


def test_a_record_that_holds(trained):
    record.verify(record.held(saved(trained[1])["model"]), storage.materialized(saved(trained[1])["model"]))
    assert record.held({}) is None
    for value in (None, 3, torch.zeros(4), torch.zeros(2, 2, dtype=torch.long), torch.tensor([300])):
        with pytest.raises(UsageError, match="damaged"):
            record.held({record.KEY: value})
