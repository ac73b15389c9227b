"""Seeded mutations of what is read: checkpoints, binarised data, specs. Never a traceback, always one line.

FAIRSEQ_SYNTH_MUTATIONS says how many of each kind (default: as many as fit into a minute).
"""

import copy
import os
import random
import shutil

import pytest
import torch
from conftest import call_command, train_args
from fairseq.data import Dictionary, data_utils

from fairseq_synth.cli import main as synth_command
from fairseq_synth.errors import UsageError
from fairseq_synth.modules.scorers.spec import parse_spec

MANY = os.environ.get("FAIRSEQ_SYNTH_MUTATIONS")
ODD = [None, -1, 0, 10**12, float("nan"), float("inf"), "", "x" * 300, "\x1b[2J", "${oc.env:HOME}", [], {}, [[]], True,
       torch.zeros(2), torch.zeros(0), (1, 2), {"a": None}, "__import__('os')", 2**70]  # fmt: skip


def cases(default):
    return range(int(MANY) if MANY else default)


@pytest.fixture(scope="module")
def files(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    frozen = ["--freeze", "ffn", "--frozen-init", "7", "--store-frozen", "seed"]
    call_command("train", *train_args(corpus, folder / "plain", updates=1))
    call_command("train", *train_args(corpus, folder / "seed", *frozen, updates=1))
    return [folder / name / "checkpoint_last.pt" for name in ("plain", "seed")]


def containers(value):
    """Every dict and list inside."""
    found, left = [], [value]
    while left:
        inner = left.pop()
        if isinstance(inner, (dict, list)) and inner:
            found.append(inner)
            left += inner.values() if isinstance(inner, dict) else inner
    return found


def mutate(state, rng):
    """One value, anywhere: another, none, or in another place. What was done, as text."""
    place = rng.choice(containers(state))
    key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    if rng.random() < 0.2:
        del place[key]
        return f"del {key}"
    value = rng.choice(ODD)
    place[key] = value
    return f"{key} = {value!r}"


def one_line_or_nothing(capsys, arguments, what):
    capsys.readouterr()
    status = synth_command([str(argument) for argument in arguments])
    errors = capsys.readouterr().err.splitlines()
    assert status in (0, 1, 2) and len(errors) == (status == 2), (what, errors)
    assert all(line.isprintable() for line in errors), what


def test_mutated_states(files, tmp_path, capsys):
    """By their meaning, without digests: as someone would who makes a file."""
    rng = random.Random(21)
    for number in cases(60):
        original = rng.choice(files)
        state = copy.deepcopy(torch.load(original, weights_only=False))
        state["model"] = dict(state["model"])
        what = [mutate(state, rng) for _ in range(rng.choice([1, 1, 2]))]
        torch.save(state, tmp_path / "mutated.pt")
        out = ["--output", tmp_path / "out.pt"]
        command = rng.choice(
            [["inspect"], ["inspect"], ["average", *out, "--inputs"], ["materialize", *out], ["diff-frozen", original]]
        )
        one_line_or_nothing(capsys, [*command, tmp_path / "mutated.pt"], (number, command[0], what))
        assert not list(tmp_path.glob("*.part"))


def test_mutated_bytes(files, tmp_path, capsys):
    """As a disk would."""
    rng = random.Random(22)
    for number in cases(60):
        original = rng.choice(files)
        content = bytearray(original.read_bytes())
        place = rng.choice([rng.randrange(len(content)), rng.randrange(2000), len(content) - rng.randrange(1, 2000)])
        kind = rng.randrange(4)
        if kind == 0:
            del content[place:]
        elif kind == 1:
            del content[place : place + rng.randint(1, 500)]
        else:
            new = rng.randbytes(rng.choice([1, 8, 200])) if hasattr(rng, "randbytes") else bytes(8)
            content[place : place + (len(new) if kind == 2 else 0)] = new
        (tmp_path / "mutated.pt").write_bytes(content)
        out = ["--output", tmp_path / "out.pt"]
        command = rng.choice([["inspect"], ["average", *out, "--inputs"], ["diff-frozen", original]])
        one_line_or_nothing(capsys, [*command, tmp_path / "mutated.pt"], (number, command[0], kind, place))


def test_mutated_data(corpus, tmp_path):
    """Every sentence of what loads can be read, and has tokens of the dictionary."""
    rng = random.Random(23)
    dictionary = Dictionary.load(str(corpus / "dict.src.txt"))
    refused = 0
    for number in cases(300):
        for ending in ("idx", "bin"):
            shutil.copy(corpus / f"test.src-tgt.src.{ending}", tmp_path / f"test.{ending}")
        path = tmp_path / f"test.{rng.choice(['idx', 'idx', 'bin'])}"
        content = bytearray(path.read_bytes())
        place = rng.randrange(len(content))
        kind = rng.randrange(3)
        if kind == 0:
            del content[place : place + rng.randint(1, 60)]
        elif kind == 1:
            content[place : place + 8] = bytes(rng.randrange(256) for _ in range(8))
        else:
            content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:
            data = data_utils.load_indexed_dataset(str(tmp_path / "test"), dictionary)
        except UsageError as error:
            refused += 1
            assert str(error).isprintable() and str(tmp_path) in str(error), (number, error)
            continue
        if data is not None:
            tokens = [int(token) for i in range(len(data)) for token in data[i]]
            assert all(0 <= token < len(dictionary) for token in tokens), (number, kind, place)
    assert refused


ALPHABET = ["random", "dense", "dot_product", "fixed_random", "+", ",", "*", "1", "2", "99", " ", "|", ":", "-", "",
            "é", "\n", "\x00", "rand", "0", "(", "\u202e"]  # fmt: skip


def test_mutated_specs():
    rng = random.Random(24)
    for _ in cases(2000):
        spec = "".join(rng.choice(ALPHABET) for _ in range(rng.randrange(9)))
        try:
            found = parse_spec(spec, 2, "--encoder-self-attention")
        except UsageError:
            continue
        assert len(found) == 2, spec
