"""What the kernels of a piece of work would cost on an H100: computed from their bytes and products, not measured.

Inside a :class:`Meter` tensors on ``cuda`` have shapes and no values (FakeTensorMode), so the largest models fit into
any machine. Every operation of aten that a GPU would start a kernel for costs the longest of: its operands and
results at RATE_BYTES, its products at the rate of their dtype, and LAUNCH. Memory is that of storages that are alive.

What this leaves out: which kernel really runs and how well, caches, fusing, waits of the host, and the optimizer.
Causal halves of fused attention are not credited. Good for comparing two models, not for seconds.
"""

import contextlib
import math
import sys
import weakref
from collections import Counter
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

RATE_BYTES = 2.6e12  # a second
HALF = 550e12  # floating point operations a second of products, as reached, not as printed on the box
RATE_FLOPS = {torch.float16: HALF, torch.bfloat16: HALF, torch.float32: 50e12, torch.float64: 50e12}
RATE_FUSED = 300e12  # of fused attention
LAUNCH = 2.5e-6  # seconds: no kernel takes less
RATES = {"bytes_per_second": RATE_BYTES, "half_flops": HALF, "float32_flops": 50e12,
         "fused_attention_flops": RATE_FUSED, "launch_seconds": LAUNCH}  # fmt: skip
NO_KERNEL = {"detach", "alias", "empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided",
             "_unsafe_view", "lift_fresh", "_reshape_alias", "device"}  # fmt: skip
aten = torch.ops.aten
QUESTIONS = (aten._local_scalar_dense, aten.equal, aten.allclose)


class Meter(TorchDispatchMode):
    """seconds, kernels, peak (bytes above what :meth:`hold` was told of), questions: what the host waited for.

    Args:
        answers: function that asks -> what a question about values is answered; others get False or 0.
    """

    def __init__(self, answers: Mapping[str, Any]) -> None:
        super().__init__()
        self.answers = answers
        self.seconds, self.kernels, self.questions = 0.0, 0, 0
        self.by_kernel: Counter = Counter()
        self._alive: Dict[int, Any] = {}
        self._live = self._held = self._peak = 0

    @property
    def peak(self) -> int:
        return self._peak - self._held

    def hold(self, module: nn.Module) -> None:
        """Count from here on: parameters and buffers are there anyhow."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._follow(tensor)
        self._held = self._peak = self._live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in QUESTIONS:
            self.questions += 1
            return self._answer(args[0])
        out = func(*args, **(kwargs or {}))
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        for tensor in outputs:
            self._follow(tensor)
        on_device = any(x.device.type == "cuda" for x in (*inputs, *outputs))
        if on_device and not func.is_view and func.overloadpacket.__name__ not in NO_KERNEL:
            taken = max(_bytes(inputs, outputs) / RATE_BYTES, _product_seconds(func, args, kwargs, out), LAUNCH)
            self.seconds += taken
            self.kernels += 1
            self.by_kernel[func.overloadpacket.__name__] += taken
        return out

    def _answer(self, tensor: Tensor) -> Any:
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_name in self.answers:
                return self.answers[frame.f_code.co_name]
            frame = frame.f_back  # type: ignore[assignment]
        return False if tensor.dtype == torch.bool else 0

    def _follow(self, tensor: Tensor) -> None:
        if tensor.device.type != "cuda":
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive:
            return

        def gone(_: Any) -> None:
            self._alive.pop(key, None)
            self._live -= size

        self._alive[key] = weakref.ref(storage, gone)
        self._live += size
        self._peak = max(self._peak, self._live)


def _tensors(tree: Any) -> List[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _bytes(inputs: List[Tensor], outputs: List[Tensor]) -> int:
    """Read and written. What is expanded is read once."""
    read = sum(math.prod(n for n, s in zip(x.shape, x.stride()) if s) * x.element_size() for x in inputs)
    return read + sum(x.numel() * x.element_size() for x in outputs)


def _product_seconds(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    packet = func.overloadpacket
    if packet not in flop_registry:
        return 0.0
    flops = flop_registry[packet](*args, **(kwargs or {}), out_val=out)
    rate = RATE_FUSED if "scaled_dot_product" in packet.__name__ else RATE_FLOPS[_tensors(out)[0].dtype]
    return flops / rate


STEPWISE = nn.functional.scaled_dot_product_attention


class FusedAttention(TorchFunctionMode):
    """Attention by the memory-efficient kernel, which a GPU would take; without one PyTorch does it in steps."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not STEPWISE:
            return func(*args, **(kwargs or {}))
        return _fused(*args, **(kwargs or {}))


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Optional[Tensor] = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Optional[float] = None,
    enable_gqa: bool = False,
) -> Tensor:
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -math.inf)
        attn_mask = attn_mask.expand(*query.shape[:3], key.shape[2])
    attend = aten._scaled_dot_product_efficient_attention
    return attend(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


def on_device(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The module with parameters and buffers on the absent device; tied ones stay tied."""
    made: Dict[int, Tuple[Tensor, Tensor]] = {}
    for part in module.modules():
        for kind in (part._parameters, part._buffers):
            for name, tensor in kind.items():
                if tensor is not None:
                    if id(tensor) not in made:
                        made[id(tensor)] = _moved(tensor, dtype), tensor
                    kind[name] = made[id(tensor)][0]  # type: ignore[assignment]
        for name, value in vars(part).items():  # fairseq's future mask, and what else is no buffer
            if isinstance(value, Tensor):
                setattr(part, name, _moved(value, dtype))
    return module


def _moved(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    moved = torch.empty(tensor.shape, dtype=dtype if tensor.is_floating_point() else tensor.dtype, device="cuda")
    return nn.Parameter(moved, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Tensors have shapes only; what a build without a GPU refuses is allowed."""
    from torch.onnx import operators

    autocast_check, shape = torch.cuda.amp.common.amp_definitely_not_available, operators.shape_as_tensor
    nn.functional.scaled_dot_product_attention = _fused  # inside PyTorch's own attention the mode is off
    threads = torch.autograd.set_multithreading_enabled(False)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    operators.shape_as_tensor = lambda x: tuple(x.shape)  # fairseq's sinusoidal positions read it
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), FusedAttention(), threads:
            yield
    finally:
        torch.cuda.amp.common.amp_definitely_not_available = autocast_check
        operators.shape_as_tensor = shape
        nn.functional.scaled_dot_product_attention = STEPWISE


def measure(module: nn.Module, work: Callable[[], Any], answers: Mapping[str, Any]) -> Meter:
    """Inside :func:`without_values`."""
    meter = Meter(answers)
    meter.hold(module)
    with meter:
        work()
    return meter
