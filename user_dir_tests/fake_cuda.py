"""A GPU that is not there: tensors that say ``cuda:0``, calculate on the CPU, and tell what a GPU would not like.

What mixes devices raises; what makes the host wait for the device is counted with its place in the package, and so
are kernels. Values are real, so results can be compared with the CPU's. Importing this loads a device
(examples/benchmark/absent_device.py), which must come before torch: use a process of its own.
"""

import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples" / "benchmark"))
from absent_device import load_device  # noqa: E402

load_device()

import torch  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
PACKAGE = str(Path(__file__).resolve().parents[1] / "fairseq_synth") + "/"
aten = torch.ops.aten
WAITS = {aten._local_scalar_dense, aten.equal, aten.allclose, aten.nonzero, aten.masked_select, aten._unique2,
         aten.unique_dim, aten.unique_consecutive, aten.repeat_interleave, aten.bincount}  # fmt: skip
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
COPIES = {aten.copy_, aten._to_copy}
NO_KERNEL = {"detach", "alias", "empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided",
             "_unsafe_view", "lift_fresh", "_reshape_alias", "device"}  # fmt: skip
# what Watch changes in torch.cuda, which a build without CUDA refuses
PRETENCE = {"_lazy_init": lambda: None, "is_available": lambda: True, "is_bf16_supported": lambda *_: True,
            "get_rng_state": lambda *_: torch.get_rng_state(), "set_rng_state": lambda *_: None}  # fmt: skip


class Gpu(torch.Tensor):
    """``on_host``: where the numbers really are."""

    @staticmethod
    def __new__(cls, on_host):
        layout = {"strides": on_host.stride(), "storage_offset": on_host.storage_offset(), "dtype": on_host.dtype}
        return torch.Tensor._make_wrapper_subclass(cls, on_host.shape, device=CUDA, **layout)

    def __init__(self, on_host):
        self.on_host = on_host

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {}, None)

    def __getitem__(self, index):
        """torch copies lists of indices to the device unseen by modes."""
        parts = index if isinstance(index, tuple) else (index,)
        parts = tuple(torch.tensor(part).to(CUDA) if isinstance(part, list) else part for part in parts)
        return super().__getitem__(parts if isinstance(index, tuple) else parts[0])

    def tolist(self):
        return self.detach().cpu().tolist()

    def __repr__(self, **_):
        return f"Gpu({self.on_host!r})"


class Watch(TorchDispatchMode):
    """waits: places where the host waits ("function, file"); kernels: how often each was started; steps: what the
    caller counts them by."""

    def __init__(self):
        super().__init__()
        self.waits, self.kernels, self.steps = Counter(), Counter(), 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _call(func, args, kwargs or {}, self)

    def __enter__(self):
        self.real = {name: getattr(torch.cuda, name) for name in PRETENCE}
        self.threads = torch.autograd.set_multithreading_enabled(False)
        for name, pretended in PRETENCE.items():
            setattr(torch.cuda, name, pretended)
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") then comes by here
        return super().__enter__()

    def __exit__(self, *exc):
        torch._C._set_only_lift_cpu_tensors(False)
        for name, real in self.real.items():
            setattr(torch.cuda, name, real)
        self.threads.__exit__(*exc)
        return super().__exit__(*exc)


def place():
    """The innermost function of the package among the callers and its file, or fairseq's where that called deeper."""
    frame, fairseq = sys._getframe(2), ""
    while frame is not None:
        name, function = frame.f_code.co_filename, frame.f_code.co_name
        if name.startswith(PACKAGE):
            return fairseq or f"{function}, {name[len(PACKAGE) :]}"
        if "/fairseq/" in name and not fairseq:
            fairseq = f"fairseq: {function}, {name.rpartition('/fairseq/')[2]}"
        frame = frame.f_back
    return fairseq or "elsewhere"


def _call(func, args, kwargs, watch):
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    on_gpu, asked = any(isinstance(x, Gpu) for x in tensors), kwargs.get("device")
    to_gpu = on_gpu if asked is None else torch.device(asked).type == "cuda"
    _check(func, tensors, on_gpu, args)
    if watch is not None and (on_gpu or to_gpu):
        if _waits(func, args, tensors, on_gpu, to_gpu):
            watch.waits[place()] += 1
        if not func.is_view and func.overloadpacket.__name__ not in NO_KERNEL:
            watch.kernels[func.overloadpacket.__name__] += 1
    here = {name: CPU if name == "device" and value is not None else value for name, value in kwargs.items()}
    result = _on_host(func, *tree_map(lambda x: x.on_host if isinstance(x, Gpu) else x, (args, here)))
    written = _written(func, args, kwargs)
    if written:
        return written[0] if len(written) == 1 else tuple(written)
    return tree_map(lambda x: Gpu(x) if to_gpu and isinstance(x, torch.Tensor) else x, result)


def _check(func, tensors, on_gpu, args):
    """What a GPU would refuse. Single numbers may come from the host, and so may indices."""
    on_cpu = any(not isinstance(x, Gpu) and x.dim() > 0 for x in tensors)
    if not (on_gpu and on_cpu) or func.overloadpacket in COPIES:
        return
    if func.overloadpacket in INDEXING and isinstance(args[0], Gpu):
        return
    raise RuntimeError(f"{func}: tensors on cuda:0 and on the CPU, {[(type(x).__name__, *x.shape) for x in tensors]}")


def _waits(func, args, tensors, on_gpu, to_gpu):
    packet = func.overloadpacket
    if packet in INDEXING:  # indices from the host, or to be counted
        return any(x is not None and (not isinstance(x, Gpu) or x.dtype == torch.bool) for x in args[1])
    if packet is aten.copy_:
        return len({isinstance(x, Gpu) for x in tensors}) == 2
    return on_gpu != to_gpu if packet is aten._to_copy else packet in WAITS


def _written(func, args, kwargs):
    """The arguments that an operation returns because it changed them."""
    schema = func._schema
    if not schema.returns or schema.returns[0].alias_info is None or not schema.returns[0].alias_info.is_write:
        return []
    given = {s.name: a for s, a in zip(schema.arguments, args)}
    given.update(kwargs)
    changed = [s.name for s in schema.arguments if s.alias_info is not None and s.alias_info.is_write]
    return [given[name] for name in changed if name in given]


def _on_host(func, args, kwargs):
    """Softmax of half precision to float32 in one kernel exists on GPUs only."""
    if func in (aten._softmax.default, aten._log_softmax.default) and args[2]:
        return func(args[0].float(), args[1], False)
    if func in (aten._softmax_backward_data.default, aten._log_softmax_backward_data.default):
        return func(*args[:3], args[0].dtype).to(args[3])
    return func(*args, **kwargs)


def to_gpu(x):
    """Modules in place (tied parameters stay tied); tensors, also inside lists, tuples and dicts."""
    if not isinstance(x, torch.nn.Module):
        return tree_map(lambda t: Gpu(t) if isinstance(t, torch.Tensor) and not isinstance(t, Gpu) else t, x)
    made = {}
    for module in x.modules():
        for kind in (module._parameters, module._buffers):
            for name, tensor in kind.items():
                if tensor is None or isinstance(tensor, Gpu):
                    continue
                if id(tensor) not in made:
                    on_gpu = Gpu(tensor.detach())
                    if isinstance(tensor, torch.nn.Parameter):
                        on_gpu = torch.nn.Parameter(on_gpu, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = on_gpu, tensor  # the tensor, too: its id must not be given to another
                kind[name] = made[id(tensor)][0]
    return x
