"""The faster matrix products: the same numbers, the same gradients, and only where they apply."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fairseq_synth.checks.case import Case
from fairseq_synth.models.decoder import SynthDecoder
from fairseq_synth.modules import products as module
from fairseq_synth.modules.products import Linear, is_faster, linear, use_faster_linear

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


@pytest.fixture
def calls(monkeypatch):
    """oneDNN for every product, on any processor; the list counts them."""
    if not HAS_ONEDNN:
        pytest.skip("this PyTorch has no oneDNN")
    counted, product = [], module.product
    monkeypatch.setattr(module, "ENABLED", True)
    monkeypatch.setattr(module, "SMALLEST", 1)
    monkeypatch.setattr(module, "product", lambda *a: counted.append(1) or product(*a))
    return counted


def inputs(shape, out=5, bias=True, seed=0):
    torch.manual_seed(seed)
    x, weight = torch.randn(*shape), torch.randn(out, shape[-1])
    tensors = [x, weight] + ([torch.randn(out)] if bias else [])
    return [t.requires_grad_() for t in tensors]


def results(function, tensors):
    y = function(*tensors)
    wanted = [t for t in tensors if t.requires_grad]
    generator = torch.Generator().manual_seed(1)
    return [y, *torch.autograd.grad(y, wanted, torch.randn(y.shape, generator=generator))]


@pytest.mark.parametrize("shape", [(7,), (3, 7), (4, 3, 7), (2, 4, 3, 7), (1, 1, 7), (1024, 64)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_pytorchs(calls, shape, bias):
    tensors = inputs(shape, bias=bias)
    for got, expected in zip(results(linear, tensors), results(F.linear, tensors)):
        assert got.shape == expected.shape
        assert torch.allclose(got, expected, atol=1e-5 * max(1.0, float(expected.detach().abs().max())))
    assert len(calls) == 3
    with torch.no_grad():
        assert torch.allclose(linear(*tensors), F.linear(*tensors), atol=1e-5)


class Operands(TorchDispatchMode):
    """Counts oneDNN's products, and those with an operand that is part of a larger tensor."""

    products = strided = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if "_linear_pointwise" in str(func):
            self.products += 1
            self.strided += not all(x.is_contiguous() or x.t().is_contiguous() for x in args[:2])
        return func(*args, **(kwargs or {}))


def test_onednn_gets_no_part_of_a_larger_tensor(calls):
    """It would take a thousand times as long."""
    torch.manual_seed(0)
    large = torch.randn(3, 8, 16)
    with Operands() as seen, torch.no_grad():
        x = module.product(large[0, :, 4:9], large[1, :, 2:7])
        y = module.batch_product(large[..., :6], large[..., 6:12].transpose(1, 2))
    assert seen.products == 4 and seen.strided == 0
    torch.testing.assert_close(x, large[0, :, 4:9] @ large[1, :, 2:7].t())
    torch.testing.assert_close(y, torch.bmm(large[..., :6], large[..., 6:12].transpose(1, 2)))


def test_strided_inputs(calls):
    x, weight, bias = inputs((3, 4, 7))
    x = x.detach().transpose(0, 1).requires_grad_()
    weight = weight.detach().t().contiguous().t().requires_grad_()
    for got, expected in zip(results(linear, [x, weight, bias]), results(F.linear, [x, weight, bias])):
        assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("trained", [0, 1, 2])
def test_what_is_frozen_costs_no_product(calls, trained):
    tensors = [t.requires_grad_(i == trained) for i, t in enumerate(inputs((4, 3, 7)))]
    for got, expected in zip(results(linear, tensors), results(F.linear, tensors)):
        assert torch.allclose(got, expected, atol=1e-5)
    assert len(calls) == (1 if trained == 2 else 2)  # forward, and one backward; a bias needs a sum only


def test_the_result_may_be_changed_in_place(calls):
    """fairseq's attention scales its queries so."""
    x, weight, bias = inputs((4, 3, 7))

    def scaled(function):
        def run(*tensors):
            y = function(*tensors)
            y *= 0.5
            return y

        return run

    for got, expected in zip(results(scaled(linear), [x, weight, bias]), results(scaled(F.linear), [x, weight, bias])):
        assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    "change", [lambda x: x.double(), lambda x: x.bfloat16(), lambda x: x[:0], lambda x: x.to("meta")]
)
def test_everything_else_is_left_to_pytorch(calls, change):
    x, weight, bias = (t.detach() for t in inputs((3, 7)))
    weight, bias = (t.to(change(x).dtype).to(change(x).device) for t in (weight, bias))
    assert linear(change(x), weight, bias).shape == (len(change(x)), 5)
    assert not calls


def test_autocast_is_left_to_pytorch(calls):
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(*inputs((3, 7))).dtype == torch.bfloat16
    assert not calls


def test_small_products_and_other_processors_are_left_to_pytorch(monkeypatch):
    x = torch.zeros(1)
    monkeypatch.setattr(module, "ENABLED", True)
    assert is_faster(module.SMALLEST, x) and not is_faster(module.SMALLEST - 1, x)
    monkeypatch.setattr(module, "ENABLED", False)
    assert not is_faster(module.SMALLEST, x)


def test_the_switch(monkeypatch):
    monkeypatch.setenv("FAIRSEQ_SYNTH_ONEDNN", "0")
    assert not module._wanted()
    monkeypatch.setenv("FAIRSEQ_SYNTH_ONEDNN", "1")
    assert module._wanted() == HAS_ONEDNN


@pytest.mark.parametrize("strided", [False, True])
def test_products_of_a_batch(calls, monkeypatch, strided):
    torch.manual_seed(0)
    x, y = torch.randn(3, 4, 5), torch.randn(3, 5, 6)
    if strided:
        x, y = torch.randn(4, 3, 5).transpose(0, 1), torch.randn(3, 6, 5).transpose(1, 2)
    out = torch.empty(4, 2, 3, 3).permute(2, 0, 1, 3)  # 3 x 4 x 2 x 3
    for enabled in (True, False):
        monkeypatch.setattr(module, "ENABLED", enabled)
        assert torch.allclose(module.batch_product(x, y), x @ y, atol=1e-5)
        assert module.batch_product(x, y, out=out.zero_()) is out
        assert torch.allclose(out.reshape(3, 4, 6), x @ y, atol=1e-5)
        assert len(calls) == 6
    assert torch.allclose(module.batch_product(x.double(), y.double()), x.double() @ y.double())


def test_layers_keep_names_weights_and_kind():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Sequential(nn.Linear(4, 2, bias=False)))
    before = copy.deepcopy(net)
    use_faster_linear(net)
    assert [type(m) for m in (net[0], net[1], net[2][0])] == [Linear, nn.LayerNorm, Linear]
    assert repr(net) == repr(before) and net.state_dict().keys() == before.state_dict().keys()
    x = torch.randn(5, 3)
    assert torch.equal(net(x), before(x)) and torch.equal(copy.deepcopy(net)(x), before(x))


def test_a_model_uses_them_everywhere():
    model = Case("random", "encoder").model()
    plain = [n for n, m in model.named_modules() if type(m) is nn.Linear]
    assert plain == [] and isinstance(model.decoder, SynthDecoder)
    scalar = Case("random", "encoder", (("quant_noise_scalar", 0.1),)).model()
    assert not [n for n, m in scalar.named_modules() if isinstance(m, Linear)]
