"""No sentence is lost on the way into a batch, and no data is an error."""

import os

import numpy as np

from ..errors import UsageError
from .patching import replace, stock_version


def keep_last_batch() -> bool:
    """fairseq drops the last n mod --required-batch-size-multiple (8) sentences, the longest ones.

    Item 4; fairseq main since commit d871f616, hence fairseq-fixed 0.12.3.1; 0.12.2 keeps them.
    Batches are sorted by length, so train, validate and generate all lose the longest sentences,
    and a test set of fewer than 8 ends in ZeroDivisionError.
    """
    from fairseq.data import data_utils

    if not _drops_remainder(data_utils.batch_by_size):
        return False

    def keeping(stock):
        def batch_by_size(
            indices,
            num_tokens_fn,
            num_tokens_vec=None,
            max_tokens=None,
            max_sentences=None,
            required_batch_size_multiple=1,
            fixed_shapes=None,
        ):
            indices = _as_array(indices)
            if len(indices) == 0:  # stock looks at the last batch of an empty list
                return []
            vector = None if num_tokens_vec is None else _as_array(num_tokens_vec)
            limits = (max_tokens, max_sentences)
            batches = stock(indices, num_tokens_fn, vector, *limits, required_batch_size_multiple, fixed_shapes)
            kept = sum(len(batch) for batch in batches)
            if kept == len(indices) or fixed_shapes is not None:
                return batches
            # Only the multiple is given up for the remainder; the two limits still hold.
            remainder = stock(indices[kept:], num_tokens_fn, None if vector is None else vector[kept:], *limits, 1)
            return list(batches) + list(remainder)

        return batch_by_size

    replace(data_utils, "batch_by_size", keeping)
    return True


def refuse_empty_data() -> bool:
    """An empty split ends in "cannot mmap an empty file", IndexError or ZeroDivisionError.

    All fairseq versions; the same for a split whose sentences are all too long. The replacement
    names the split and the fix. It applies to training as well, where an empty split fails later
    and just as obscurely.
    """
    from fairseq.data import indexed_dataset
    from fairseq.tasks.fairseq_task import FairseqTask

    replace(indexed_dataset, "make_dataset", _checking_file)
    replace(FairseqTask, "get_batch_iterator", _checking_split)
    replace(FairseqTask, "filter_indices_by_size", _checking_filter)
    return True


def refuse_dropped_blocks() -> bool:
    """fairseq-eval-lm skips blocks longer than the model and reports "Loss (base 2): 0.0000".

    Item 21; all fairseq versions: the default --tokens-per-sample of eval-lm is 1024, whatever the
    model was trained with.
    """
    from fairseq.tasks.language_modeling import LanguageModelingTask

    def checking(stock):
        def eval_lm_dataloader(self, dataset, *args, max_positions=None, context_window=0, **kwargs):
            _check_blocks(self, dataset, max_positions, context_window)
            return stock(
                self,
                dataset,
                *args,
                max_positions=max_positions,
                context_window=context_window,
                **kwargs,
            )

        return eval_lm_dataloader

    replace(LanguageModelingTask, "eval_lm_dataloader", checking)
    return True


def _drops_remainder(batch_by_size) -> bool:
    ones = np.ones(3, dtype=np.int64)
    batches = stock_version(batch_by_size)(np.arange(3), None, ones, required_batch_size_multiple=2)
    return sum(len(batch) for batch in batches) < 3


def _as_array(values) -> np.ndarray:
    if isinstance(values, np.ndarray):
        return values
    return np.fromiter(values, dtype=np.int64, count=-1)


def _checking_file(stock):
    def make_dataset(path, impl, *args, **kwargs):
        data = f"{path}.bin"
        if impl == "mmap" and os.path.isfile(data) and os.path.getsize(data) == 0:
            raise UsageError(
                f"dataset {path} holds 0 sentences, at least 1 is needed: "
                "run fairseq-preprocess on a text file that is not empty"
            )
        return stock(path, impl, *args, **kwargs)

    return make_dataset


def _checking_split(stock):
    def get_batch_iterator(self, dataset, *args, **kwargs):
        if len(dataset) == 0:
            raise UsageError(
                f"{_split_name(self, dataset)} holds 0 sentences, at least 1 is needed: "
                "run fairseq-preprocess on a text file that is not empty, or choose another split"
            )
        return stock(self, dataset, *args, **kwargs)

    return get_batch_iterator


def _checking_filter(stock):
    def filter_indices_by_size(self, indices, dataset, max_positions=None, ignore_invalid_inputs=False):
        kept = stock(self, indices, dataset, max_positions, ignore_invalid_inputs)
        if len(kept) == 0 and len(indices) > 0:
            raise UsageError(
                f"all {len(indices)} sentences of {_split_name(self, dataset)} are longer than the "
                f"limit of {_plain(max_positions)} tokens (end of sentence included): shorten "
                "them, or train a model with larger --max-source-positions and "
                "--max-target-positions (--tokens-per-sample for a language model)"
            )
        return kept

    return filter_indices_by_size


def _check_blocks(task, dataset, max_positions, context_window) -> None:
    if max_positions is None:
        return
    indices = dataset.ordered_indices()
    _, dropped = dataset.filter_indices_by_size(indices, max_positions)
    if len(dropped) == 0:
        return
    longest = max(int(dataset.size(index)) for index in dropped)
    block = task.args.tokens_per_sample
    if longest <= block:
        fix = f"pass --tokens-per-sample {_plain(max_positions)}"
    else:  # whole sentences: eos and complete modes never cut one
        mode = getattr(task.args, "sample_break_mode", None)
        fix = f"--sample-break-mode {mode} keeps sentences whole, pass --sample-break-mode none"
    raise UsageError(
        f"--tokens-per-sample {block + context_window}: {len(dropped)} of {len(indices)} blocks "
        f"are longer (up to {longest} tokens) than the model's limit of {_plain(max_positions)} "
        f"and would be left out of the loss: {fix}"
    )


def _split_name(task, dataset) -> str:
    for name, loaded in getattr(task, "datasets", {}).items():
        if loaded is dataset:
            return f"split '{name}'"
    return "the input"


def _plain(limit):
    """A limit as a user reads it: one number where source and target have the same."""
    if isinstance(limit, (tuple, list)) and len(set(limit)) == 1:
        return limit[0]
    return limit
