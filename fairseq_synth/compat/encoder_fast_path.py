"""Stock encoders of fairseq 0.12.2."""

from .patching import replace, stock_version


def has_fast_path() -> bool:
    """Whether this fairseq has the fused encoder of 0.12.2."""
    from fairseq.modules.transformer_layer import TransformerEncoderLayerBase

    return "can_use_fastpath" in stock_version(TransformerEncoderLayerBase.__init__).__code__.co_names


def disable_encoder_fast_path() -> bool:
    """fairseq 0.12.2's fused encoder fails on left-padded batches: "Mask Type should be defined".

    Item 14; fairseq 0.12.2 with torch >= 1.13, in generate and validate of any stock transformer.
    Every encoder layer takes the ordinary path instead, which computes the same.
    """
    from fairseq.modules.transformer_layer import TransformerEncoderLayerBase

    if not has_fast_path():
        return False

    def ordinary(stock):
        def __init__(self, *args, **kwargs):
            stock(self, *args, **kwargs)
            self.can_use_fastpath = False

        return __init__

    replace(TransformerEncoderLayerBase, "__init__", ordinary)
    return True


def drop_fast_path_duplicates() -> bool:
    """Stock encoder layers saved by fairseq 0.12.2 hold 8 duplicate tensors: "Unexpected key(s)".

    Item 16; needed by every later version. 0.12.2 stored copies of the attention and feed-forward
    weights for a fused kernel; the originals are in the file as well, so the copies are dropped
    while loading.
    """
    from fairseq.modules.transformer_layer import TransformerEncoderLayerBase

    if has_fast_path():
        return False

    def without_duplicates(stock):
        def upgrade_state_dict_named(self, state_dict, name):
            for module in ("in_proj", "out_proj", "fc1", "fc2"):
                for tensor in ("weight", "bias"):
                    state_dict.pop(f"{name}.{module}_{tensor}", None)
            return stock(self, state_dict, name)

        return upgrade_state_dict_named

    replace(TransformerEncoderLayerBase, "upgrade_state_dict_named", without_duplicates)
    return True
