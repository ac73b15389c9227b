"""The stream of random numbers: published vectors, a reference in plain integers, golden digests, random access."""

import hashlib
import math

import numpy as np
import pytest
import torch

from fairseq_synth.seeded import generator
from fairseq_synth.seeded.recipe import Recipe, Rule, from_json, recipe_of

CPU = torch.device("cpu")
# (counter, key, words): kat_vectors of Random123 1.09 for philox4x64-10
PI = (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89)
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)),
    (
        (2**64 - 1,) * 4,
        (2**64 - 1,) * 2,
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (
        PI,
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


def philox(counter, key):
    """One block in Python's integers, after the paper's definition."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [second >> 64 ^ c[1] ^ k[0], second % 2**64, first >> 64 ^ c[3] ^ k[1], first % 2**64]
        k = [(k[0] + 0x9E3779B97F4A7C15) % 2**64, (k[1] + 0xBB67AE8584CAA73B) % 2**64]
    return c


def lanes(seed, name, block):
    """Eight signed integers, the documented way."""
    key = hashlib.sha256(f"fairseq_synth.seeded/1\0{seed}\0{name}".encode()).digest()
    words = philox((block, 0, 0, 0), [int.from_bytes(key[i : i + 8], "little") for i in (0, 8)])
    halves = [half for word in words for half in (word % 2**32, word >> 32)]
    return [half - 2**32 if half >= 2**31 else half for half in halves]


@pytest.mark.parametrize("counter, key, words", KNOWN)
def test_published_vectors(counter, key, words):
    assert tuple(philox(counter, key)) == words


def test_both_implementations_are_philox():
    """The block at counter 0 is the first published vector; others are the reference's, alone and in a row."""
    for words in (generator.host_words((0, 0), 0, 1), generator.device_words((0, 0), 0, 1, CPU)):
        assert [w % 2**64 for w in words.tolist()] == list(KNOWN[0][2])
    key = (0xFEDCBA9876543210, 0x8000000000000001)
    for first in (0, 1, 2**31 - 2, 2**32 - 1, 2**40 + 5):
        expected = [w for i in range(3) for w in philox((first + i, 0, 0, 0), key)]
        for words in (generator.host_words(key, first, 3), generator.device_words(key, first, 3, CPU)):
            assert [w % 2**64 for w in words.tolist()] == expected


def test_the_two_implementations_agree_at_length():
    key = generator.stream_key(3, "encoder.layers.0.fc1.weight")
    assert torch.equal(generator.host_words(key, 11, 5000), generator.device_words(key, 11, 5000, CPU))


def test_uniform_is_the_documented_product():
    out = generator.uniform(5, "a.weight", 0.37, 0, torch.empty(40))
    scale = np.float32(np.float32(0.37) * 2.0**-24)
    expected = [np.float32((lane >> 7) | 1) * scale for block in range(5) for lane in lanes(5, "a.weight", block)]
    assert out.tolist() == [float(value) for value in expected]


def test_normal_is_the_documented_product():
    out = generator.normal(5, "a.weight", 0.37, 2, torch.empty(9))
    scale = np.float32(0.37 / math.sqrt((2**43 - 2) * 4 / 3))
    sums = [2 * sum(lane >> 11 for lane in lanes(5, "a.weight", block)) + 8 for block in range(2, 11)]
    assert out.tolist() == [float(np.float32(value) * scale) for value in sums]


def test_golden_digests():
    """These bytes are the format: checkpoints depend on them."""
    found = {
        kind: hashlib.sha256(
            Recipe(1, "encoder.layers.0.fc1.weight", (300, 70), Rule(kind, 0.05)).tensor().numpy().tobytes()
        ).hexdigest()
        for kind in ("uniform", "normal")
    }
    assert found == {
        "uniform": "ea8f3a837956e16feea10f13f69df5dbaff494f3bdcb7ddce9441fdfea9d15f6",
        "normal": "32056be5de2a3dd8655d5ad2c7a943161bfa941ec2e4854847d287470ed3d370",
    }


@pytest.mark.parametrize("draw", [generator.uniform, generator.normal])
def test_any_part_can_be_drawn_alone(draw, monkeypatch):
    whole = draw(1, "x", 1.0, 0, torch.empty(3000))
    for start, size in ((0, 1), (1, 1), (7, 2), (8, 8), (13, 1500), (2999, 1), (5, 0)):
        assert torch.equal(draw(1, "x", 1.0, start, torch.empty(size)), whole[start : start + size])
    monkeypatch.setattr(generator, "CHUNK", 64)
    assert torch.equal(draw(1, "x", 1.0, 3, torch.empty(2900)), whole[3:2903])


def test_seed_and_name_select_the_stream():
    def first(seed, name):
        return generator.uniform(seed, name, 1.0, 0, torch.empty(8))

    one = first(1, "a")
    assert torch.equal(one, first(1, "a"))
    assert not any(torch.equal(one, other) for other in (first(2, "a"), first(1, "b"), first(11, "a")))
    assert not torch.equal(first(1, "1a"), first(11, "a"))


def test_moments_and_limits():
    uniform = generator.uniform(1, "x", 2.0, 0, torch.empty(1 << 18)).double()
    assert uniform.abs().max() < 2 and abs(uniform.mean()) < 0.01
    assert uniform.std().item() == pytest.approx(2 / math.sqrt(3), rel=5e-3)
    normal = generator.normal(1, "x", 2.0, 0, torch.empty(1 << 18)).double()
    assert normal.std().item() == pytest.approx(2, rel=5e-3) and abs(normal.mean()) < 0.02
    assert normal.abs().max() < 2 * 4.9
    assert ((normal / 2) ** 4).mean().item() == pytest.approx(3 - 0.15, abs=0.05)  # excess kurtosis -1.2 / 8
    lagged = uniform.view(-1, 8)
    assert lagged.T.corrcoef().fill_diagonal_(0).abs().max() < 0.03


def test_the_generator_of_torch_is_not_touched():
    before = torch.get_rng_state()
    generator.uniform(1, "x", 1.0, 0, torch.empty(100))
    assert torch.equal(before, torch.get_rng_state())


def test_out_must_be_flat_float32():
    for wrong in (torch.empty(4, dtype=torch.float64), torch.empty(2, 2)):
        with pytest.raises(ValueError, match="float32 of one dimension"):
            generator.uniform(1, "x", 1.0, 0, wrong)


# ---------------------------------------------------------------------- recipes
def test_rows_are_rows_of_the_tensor():
    recipe = Recipe(1, "e", (50, 3, 7), Rule("uniform", 0.1, zero_row=4))
    whole = recipe.tensor()
    assert whole.shape == (50, 3, 7) and not whole[4].any() and whole[3].all() and whole[5].all()
    for start, stop in ((0, 1), (3, 6), (4, 5), (5, 50)):
        assert torch.equal(recipe.rows(start, stop), whole[start:stop])


def test_constant_and_precision():
    recipe = Recipe(1, "b", (5,), Rule("constant", 0.25), ("bfloat16",))
    assert torch.equal(recipe.tensor(), torch.full((5,), 0.25, dtype=torch.bfloat16))


@pytest.mark.parametrize("casts", [("float32",), ("float16",), ("bfloat16",), ("float16", "float32")])
def test_the_precision_is_found_again(casts):
    draw = Recipe(1, "w", (20, 30), Rule("uniform", 0.1))
    tensor = draw._replace(casts=casts).tensor()
    found = recipe_of(tensor, draw)
    assert found is not None and found.casts == casts and torch.equal(found.tensor(), tensor)
    assert recipe_of(tensor + 1e-3, draw) is None and recipe_of(tensor[:5], draw) is None


def test_recipes_survive_json():
    recipe = Recipe(7, "w", (20, 30), Rule("uniform", math.sqrt(6 / 50), 1), ("float16", "float32"))
    assert from_json(7, "w", recipe.to_json()) == recipe
    with pytest.raises(ValueError, match="unknown recipe"):
        from_json(7, "w", [[2], "cauchy", 1.0, None, ["float32"]])
