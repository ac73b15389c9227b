"""Names that numpy removed and fairseq still uses."""

import inspect
import types

import numpy as np

from .patching import replace


def restore_np_compat() -> bool:
    """numpy 2 has no np.compat; fairseq's token blocks and bucketed pairs use np.compat.long.

    Item 5; all released fairseq versions. Without it `--sample-break-mode eos`, translation with a
    language model and `--num-batch-buckets` end in "module 'numpy' has no attribute 'compat'".
    """
    if hasattr(np, "compat") and not isinstance(np.compat, types.SimpleNamespace):
        return False
    np.compat = types.SimpleNamespace(long=int)  # type: ignore[attr-defined]
    return True


def restore_percentile_buckets() -> bool:
    """numpy 2.4 has no percentile(interpolation=...), which `--num-batch-buckets` calls.

    Item 6; all released fairseq versions. `bucket_pad_length_dataset` imported the function by
    name, so it is replaced there as well.
    """
    if "interpolation" in inspect.signature(np.percentile).parameters:
        return False
    from fairseq.data import bucket_pad_length_dataset, data_utils

    def with_method(stock):
        def get_buckets(sizes, num_buckets):
            edges = np.percentile(sizes, np.linspace(0, 100, num_buckets + 1), method="lower")
            return np.unique(edges[1:])

        return get_buckets

    for module in (data_utils, bucket_pad_length_dataset):
        replace(module, "get_buckets", with_method)
    return True
