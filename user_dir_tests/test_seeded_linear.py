"""SeededLinear: the same numbers as the stored layer, gradients, memory, loading."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fairseq_synth.errors import UsageError
from fairseq_synth.modules.products import Linear
from fairseq_synth.seeded import linear
from fairseq_synth.seeded.linear import SeededLinear, blocks, seeded_linear
from fairseq_synth.seeded.recipe import Recipe, Rule

SHAPES = [(2048, 512), (512, 2048), (1536, 256), (256, 1536), (1024, 1024), (24, 16), (100, 70), (130, 67), (200, 333)]


def recipe(rows, columns, casts=("float32",)):
    return Recipe(3, "layer.weight", (rows, columns), Rule("uniform", (6 / (rows + columns)) ** 0.5), casts)


def stored(layer):
    """The ordinary layer with the same numbers."""
    made = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    with torch.no_grad():
        made.weight.copy_(layer.weight)
        if layer.bias is not None:
            made.bias.copy_(layer.bias)
    return made


@pytest.mark.parametrize("rows, columns", SHAPES)
def test_blocks_equal_the_stored_layer_bit_for_bit(rows, columns):
    """The stored matrix in the same blocks. What one multiplication by the whole matrix gives is up to the library and
    the processor: MKL's results are the same bits on AMD's, not on all of Intel's."""
    layer = SeededLinear(recipe(rows, columns), nn.Parameter(torch.randn(rows), requires_grad=False))
    weight, whole = layer.weight, stored(layer)
    for shape in ((1,), (3,), (64,), (7, 5), (5, 7, "turned"), (0,)):
        x = torch.randn(*shape, columns) if "turned" not in shape else torch.randn(7, 5, columns).transpose(0, 1)
        with torch.no_grad():
            y = layer(x)
            parts = [F.linear(x, weight[a:b], layer.bias[a:b]) for a, b in blocks(rows, columns)]
            assert torch.equal(y, torch.cat(parts, dim=-1))
            torch.testing.assert_close(y, whole(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows, columns", SHAPES[:5])
def test_stands_for_the_faster_linear_too(rows, columns):
    """Its choice between MKL and oneDNN depends on the whole matrix, not on a block."""
    layer = SeededLinear(recipe(rows, columns), nn.Parameter(torch.randn(rows), requires_grad=False), faster=True)
    whole = Linear(columns, rows)
    whole.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    for batch in (1, 3, 20, 64, 333):
        x = torch.randn(batch, columns)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), whole(x), rtol=1e-5, atol=1e-5)


def test_blocks_cover_all_rows_once():
    for rows in (1, 63, 64, 65, 127, 128, 129, 1000, 4096):
        for columns in (1, 64, 3000):
            found = list(blocks(rows, columns))
            assert [a for a, _ in found] == [0, *[b for _, b in found[:-1]]] and found[-1][1] == rows
            assert all(b - a >= 64 for a, b in found) or rows < 64
            assert all(a % 64 == 0 for a, _ in found)


@pytest.mark.parametrize("casts", [("float16",), ("bfloat16", "float32")])
def test_rounds_as_the_checkpoint_did(casts):
    layer = SeededLinear(recipe(128, 96, casts))
    x = torch.randn(4, 96)
    assert torch.equal(layer(x), F.linear(x, layer.weight.float()))
    assert not torch.equal(layer(x), SeededLinear(recipe(128, 96))(x))


def test_gradient_at_the_input_and_none_kept_of_the_weight():
    layer = SeededLinear(recipe(300, 40), nn.Parameter(torch.randn(300)))
    whole, x = stored(layer), torch.randn(2, 9, 40, requires_grad=True)
    grad = torch.randn(2, 9, 300)
    (expected,) = torch.autograd.grad(whole(x), x, grad)
    y = layer(x)
    found, at_bias = torch.autograd.grad(y, (x, layer.bias), grad)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(at_bias, grad.sum((0, 1)))
    assert torch.autograd.gradcheck(layer.double(), torch.randn(2, 40, dtype=torch.float64, requires_grad=True))


def test_never_holds_the_matrix(monkeypatch):
    """Recorded at the one place that draws: no more than a block at a time, a small part of the matrix."""
    sizes = []
    rows = Recipe.rows

    def record(self, start, stop, device=None):
        sizes.append((stop - start) * self.shape[1])
        return rows(self, start, stop, device)

    monkeypatch.setattr(Recipe, "rows", record)
    seeded_linear(torch.randn(2, 4096), recipe(1024, 4096))
    assert sum(sizes) == 1024 * 4096 and max(sizes) <= 1024 * 4096 // 16 == linear.MIN_ROWS * 4096
    layer = SeededLinear(recipe(1024, 4096))
    assert not list(layer.parameters()) and not list(layer.buffers())


# ---------------------------------------------------------------------- loading
def test_loads_a_recipe_or_the_right_weight_only():
    layer = SeededLinear(recipe(30, 20), nn.Parameter(torch.zeros(30)))
    other = recipe(30, 20)._replace(name="elsewhere")
    layer.load_state_dict({"weight": other, "bias": torch.ones(30)})
    assert layer.recipe == other and layer.bias.sum() == 30
    layer.load_state_dict({"weight": other.tensor(), "bias": torch.zeros(30)})
    layer.load_state_dict({"weight": other.tensor().half(), "bias": torch.zeros(30)})
    with pytest.raises(UsageError, match="--frozen-on-the-fly: weight in the checkpoint is not what seed 3 draws"):
        layer.load_state_dict({"weight": recipe(30, 20).tensor(), "bias": torch.zeros(30)})
    with pytest.raises(RuntimeError, match="Missing.*weight"):
        layer.load_state_dict({"bias": torch.zeros(30)})
    with pytest.raises(RuntimeError, match="Unexpected.*more"):
        layer.load_state_dict({"weight": other, "bias": torch.zeros(30), "more": torch.zeros(1)})
