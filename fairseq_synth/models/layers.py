"""What encoder and decoder layers of this package share."""

from typing import Any

import torch
from fairseq.distributed import fsdp_wrap
from fairseq.modules.checkpoint_activations import checkpoint_wrapper
from torch import Tensor, nn

from fairseq_synth.seeded.on_the_fly import drop_weights


class _Nothing(nn.Module):
    """Stands where a feed-forward sublayer was: the residual passes it unchanged."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def drop_feed_forward(layer: nn.Module) -> None:
    """All-attention layers have none: the layer ends with the norm after its last attention."""
    layer.fc1, layer.fc2, layer.final_layer_norm = nn.Identity(), _Nothing(), nn.Identity()


def wrap(layer: nn.Module, cfg: Any) -> nn.Module:
    """What fairseq does to a layer it has built: --checkpoint-activations and fully sharded training."""
    if cfg.frozen_on_the_fly:
        drop_weights(layer)
    if cfg.checkpoint_activations:
        layer = checkpoint_wrapper(layer, offload_to_cpu=cfg.offload_activations)
    return fsdp_wrap(layer, min_num_params=0 if cfg.checkpoint_activations else cfg.min_params_to_wrap)
