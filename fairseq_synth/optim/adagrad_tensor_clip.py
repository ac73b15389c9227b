"""``--optimizer adagrad_tensor_clip``: Adagrad that limits the step of every parameter tensor by its own gradient.

The optimizer of the adaptive-span and all-attention papers (Sukhbaatar et al. 2019): where the norm of a tensor's
gradient is above the threshold, the tensor's learning rate is multiplied by threshold / norm. The accumulated squares
are those of the gradient as it came, so this is not the same as clipping gradients and then running Adagrad.
"""

from dataclasses import dataclass, field
from typing import Any, Dict, List

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.optim import FairseqOptimizer, register_optimizer
from omegaconf import II

from fairseq_synth.errors import UsageError

EPSILON = 1e-10


@dataclass
class AdagradTensorClipConfig(FairseqDataclass):
    adagrad_clip: float = field(
        default=0.03, metadata={"help": "largest gradient norm per parameter tensor; 0: no limit"}
    )
    weight_decay: float = field(default=0.0, metadata={"help": "weight decay"})
    lr: List[float] = II("optimization.lr")


@register_optimizer("adagrad_tensor_clip", dataclass=AdagradTensorClipConfig)
class FairseqAdagradTensorClip(FairseqOptimizer):
    def __init__(self, cfg: AdagradTensorClipConfig, params: Any) -> None:
        super().__init__(cfg)
        self._optimizer = AdagradTensorClip(params, **self.optimizer_config)

    @property
    def optimizer_config(self) -> Dict[str, float]:
        lr = self.cfg.lr
        return {
            "lr": float(lr if isinstance(lr, (int, float)) else lr[0]),
            "clip": self.cfg.adagrad_clip,
            "weight_decay": self.cfg.weight_decay,
        }

    @property
    def supports_memory_efficient_fp16(self) -> bool:
        """fairseq asks where --memory-efficient-fp16 or -bf16 is given. Raises UsageError."""
        raise UsageError(
            "--memory-efficient-fp16, -bf16: adagrad_tensor_clip sums squares in float32, half precision would swallow "
            "its steps; give --fp16 --fp16-no-flatten-grads or --bf16 instead"
        )

    @property
    def supports_flat_params(self) -> bool:
        return False  # norms are per tensor


class AdagradTensorClip(torch.optim.Optimizer):
    """sum += g * g;  p -= lr * min(1, clip / |g|) * g / (sqrt(sum) + eps), for every tensor p with gradient g."""

    def __init__(self, params: Any, lr: float, clip: float = 0.03, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "clip": clip, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)
        return loss

    def _update(self, p: torch.Tensor, grad: torch.Tensor, group: Dict[str, Any]) -> None:
        state, grad = self.state[p], grad.to(torch.promote_types(p.dtype, torch.float32))
        if "sum" not in state:
            state["sum"] = torch.zeros_like(grad)
        if group["weight_decay"]:
            grad = grad + group["weight_decay"] * p
        rate = grad.new_tensor(group["lr"])
        if group["clip"] > 0:
            rate = rate * (group["clip"] / (grad.norm() + EPSILON)).clamp(max=1)
        state["sum"].addcmul_(grad, grad)
        p.sub_((rate * grad / (state["sum"].sqrt() + EPSILON)).to(p.dtype))
