"""Half precision without a TPU or a GPU."""

import importlib.util
import sys

from ..errors import UsageError
from .patching import replace


def keep_bf16_off_tpu() -> bool:
    """`--bf16` and `--memory-efficient-bf16` switch --tpu on, which needs torch_xla.

    Item 11; all fairseq versions, on CPU and GPU: "'NoneType' object has no attribute
    'xla_device'". With torch_xla installed, or with an explicit --tpu, the options are left as
    parsed.
    """
    if importlib.util.find_spec("torch_xla") is not None:
        return False
    from fairseq import options

    def resetting(stock):
        def parse_args_and_arch(parser, input_args=None, *args, **kwargs):
            parsed = stock(parser, input_args, *args, **kwargs)
            if "--tpu" not in (sys.argv if input_args is None else input_args):
                reset_tpu(parsed[0] if isinstance(parsed, tuple) else parsed)
            return parsed

        return parse_args_and_arch

    replace(options, "parse_args_and_arch", resetting)
    return True


def reset_tpu(args) -> None:
    """Undo `args.tpu = True` of fairseq's option parser where it only came from bf16."""
    if getattr(args, "tpu", False) and getattr(args, "bf16", False):
        args.tpu = False


def refuse_flat_fp16_on_cpu() -> bool:
    """`--fp16` on a CPU ends in "Torch not compiled with CUDA enabled" or "Found no NVIDIA driver".

    Item 12; all fairseq versions: the flat float32 copy of the weights is kept per GPU. The message
    names the options that do work.
    """
    from fairseq.optim.fp16_optimizer import FP16Optimizer

    def checking(stock):
        def build_optimizer(cls, cfg, params, **kwargs):
            params = list(params)
            flat = not (cfg.common.bf16 or getattr(cfg.common, "fp16_no_flatten_grads", False))
            if flat and any(parameter.device.type == "cpu" for parameter in params):
                raise UsageError(
                    "--fp16 on a CPU: fairseq keeps its flat float32 copy of the weights on a GPU; "
                    "leave --fp16 out or use --bf16 (recent PyTorch also runs --fp16 "
                    "--fp16-no-flatten-grads on a CPU)"
                )
            return stock(cls, cfg, params, **kwargs)

        return build_optimizer

    replace(FP16Optimizer, "build_optimizer", checking)
    return True
