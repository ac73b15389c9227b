"""Matrix products by oneDNN where PyTorch's default on a CPU, MKL, is the slower of the two.

PyTorch brings both. For float32 it calls MKL, which leaves the AVX-512 units of AMD's processors unused; oneDNN uses
them and takes about half the time (measured on an EPYC of family 26: 100 and 200 GFLOP/s on one thread). The results
differ by rounding. Everything else (GPUs, other dtypes and processors, small products, autocast) is left to PyTorch.

The environment variable FAIRSEQ_SYNTH_ONEDNN=0 switches this off, 1 switches it on on any processor.
"""

import os
from pathlib import Path
from typing import Any, Optional

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

SMALLEST = 1 << 20  # multiplications: below, oneDNN's preparations cost more than it saves


def _wanted() -> bool:
    """Whether oneDNN is there and the faster one on this processor."""
    choice = os.environ.get("FAIRSEQ_SYNTH_ONEDNN", "")
    if choice == "0" or not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return choice == "1" or ("AVX512" in torch.backends.cpu.get_cpu_capability() and _is_amd())


def _is_amd() -> bool:
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False


def autocast(device: torch.device) -> bool:
    """Whether PyTorch chooses the dtypes of products on this device now."""
    if _AUTOCAST_TAKES_DEVICE:
        return torch.is_autocast_enabled(device.type)
    return torch.is_autocast_enabled() if device.type == "cuda" else torch.is_autocast_cpu_enabled()


def autocast_dtype(device: torch.device) -> torch.dtype:
    """What autocast makes of the operands of products on this device."""
    if _AUTOCAST_TAKES_DEVICE:
        return torch.get_autocast_dtype(device.type)
    return torch.get_autocast_gpu_dtype() if device.type == "cuda" else torch.get_autocast_cpu_dtype()


def full_precision(x: Tensor) -> Tensor:
    """Softmaxes are taken in float32 at least, as in fairseq."""
    return x.float() if x.dtype in HALF else x


HALF = (torch.float16, torch.bfloat16)
ENABLED = _wanted()
_AUTOCAST_TAKES_DEVICE = tuple(int(n) for n in torch.__version__.split(".")[:2]) >= (2, 4)


def is_faster(multiplications: int, *operands: Tensor) -> bool:
    """Whether :func:`product` is the better way to multiply these float32 matrices."""
    if not ENABLED or multiplications < SMALLEST or autocast(_CPU):
        return False
    for x in operands:
        if x.dtype != torch.float32 or x.device != _CPU or type(x) not in _PLAIN:
            return False
    return True


_CPU = torch.device("cpu")
_PLAIN = (Tensor, nn.Parameter)  # nothing that watches or replaces what is done with it


def product(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """x (... x K) times the transpose of weight (N x K), plus bias (N). Any strides. No gradient."""
    return torch.ops.mkldnn._linear_pointwise(_dense(x), _dense(weight), bias, "none", [], "")


def _dense(x: Tensor) -> Tensor:
    """A part of a larger tensor as a tensor of its own: oneDNN takes a thousand times as long for the former."""
    return x if x.is_contiguous() or (x.dim() == 2 and x.t().is_contiguous()) else x.contiguous()


class _Linear(torch.autograd.Function):
    """x: M x K. (The result must not be a view: callers may change it in place.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            product(gradient, weight.t()) if for_x else None,
            product(gradient.t(), x.t()) if for_weight else None,
            gradient.sum(dim=0) if for_bias else None,
        )


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """As ``torch.nn.functional.linear``."""
    if not is_faster(x.numel() * weight.size(0), x, weight):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return product(x, weight, bias)
    return _Linear.apply(x.reshape(-1, x.size(-1)), weight, bias).view(*x.shape[:-1], -1)


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`; same parameters, names and initialisation."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def use_faster_linear(module: nn.Module) -> None:
    """Turn every plain ``nn.Linear`` inside a module into a :class:`Linear`, in place.

    The class of the living module is changed: fairseq builds these layers in a dozen places, ties their weights and
    hangs hooks on them (quantization noise), all of which a module put in their place would have to repeat.
    """
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear


def batch_product(x: Tensor, y: Tensor, out: Optional[Tensor] = None) -> Tensor:
    """x (G x M x K) times y (G x K x N), any strides. out: G x M x N, or more dimensions of that size. No gradient."""
    if is_faster(x.size(1) * x.size(2) * y.size(2) // 4, x, y):  # a loop costs more than a call
        parts = [product(a, b.t()) for a, b in zip(x.unbind(0), y.unbind(0))]
        if out is None:
            return torch.stack(parts)
        for place, part in zip(out.unbind(0), parts):
            place.copy_(part.view_as(place))
        return out
    made = torch.bmm(x, y)  # writing to strided memory itself is slower
    return made if out is None else out.copy_(made.view_as(out))
