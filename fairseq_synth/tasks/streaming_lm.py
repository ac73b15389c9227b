"""``--task streaming_lm``: a text as parallel streams, block after block, with a memory that travels along.

The text is cut into ``--batch-size`` streams (per worker) of equal length; batch k holds block k of every stream
(``--tokens-per-sample`` tokens). Every token is predicted exactly once, the first of a block too: its context is the
last token of the block before. Only the end of the last stream is padded. Each pass over a data set starts with an
empty memory; a run resumed in the middle of an epoch goes on with the memory that its checkpoint holds.

Generation (``fairseq-generate``, ``fairseq-interactive``) is that of fairseq's ``language_modeling`` task.
"""

import os
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from fairseq import utils
from fairseq.data import FairseqDataset, data_utils
from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask

from fairseq_synth.errors import UsageError, option_name
from fairseq_synth.tasks.stream_iterator import StreamIterator


@dataclass
class StreamingLMConfig(LanguageModelingConfig):
    tokens_per_sample: int = field(default=512, metadata={"help": "tokens of a block"})


# options of language_modeling that mean nothing for streams, and the value that leaves them alone
_UNUSED: Dict[str, Any] = {
    "sample_break_mode": "none",
    "output_dictionary_size": -1,
    "self_target": False,
    "past_target": False,
    "add_bos_token": False,
    "shorten_method": "none",
    "pad_to_fixed_length": False,
    "pad_to_fixed_bsz": False,
}


@register_task("streaming_lm", dataclass=StreamingLMConfig)
class StreamingLMTask(LanguageModelingTask):
    """Language modelling over streams of blocks. Raises UsageError for options that would be ignored."""

    @classmethod
    def setup_task(cls, args: Any, **kwargs: Any) -> "StreamingLMTask":
        for name, unused in _UNUSED.items():
            value = getattr(args, name, unused)
            value = getattr(value, "value", value)  # an enum
            if value not in (unused, None):
                flag = option_name(name)
                raise UsageError(f"{flag} {value}: has no effect on streams; leave it out or use language_modeling")
        if args.tokens_per_sample < 1:
            raise UsageError(f"--tokens-per-sample {args.tokens_per_sample}: a block needs at least 1 token")
        return super().setup_task(args, **kwargs)

    def load_dataset(
        self,
        split: str,
        epoch: int = 1,
        combine: bool = False,
        task_cfg: Any = None,
        data_selector: Any = None,
        tpu: bool = False,
    ) -> None:
        paths = utils.split_paths(self.args.data)
        path = os.path.join(paths[(epoch - 1) % len(paths)], split)
        lines = data_utils.load_indexed_dataset(path, self.dictionary, self.args.dataset_impl, combine=combine)
        if lines is None:
            raise FileNotFoundError(f"Dataset not found: {split} ({path})")
        self.datasets[split] = StreamText(lines, self.dictionary)

    def get_batch_iterator(
        self,
        dataset: Any,
        max_tokens: Optional[int] = None,
        max_sentences: Optional[int] = None,
        max_positions: Any = None,
        ignore_invalid_inputs: bool = False,
        required_batch_size_multiple: int = 1,
        seed: int = 1,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 0,
        epoch: int = 1,
        data_buffer_size: int = 0,
        disable_iterator_cache: bool = False,
        skip_remainder_batch: bool = False,
        grouped_shuffling: bool = False,
        update_epoch_batch_itr: bool = False,
    ) -> Any:
        """Streams for a text; for anything else (prompts to generate from) what fairseq does."""
        if not isinstance(dataset, StreamText):
            return super().get_batch_iterator(
                dataset, max_tokens, max_sentences, max_positions, ignore_invalid_inputs,
                required_batch_size_multiple, seed, num_shards, shard_id, num_workers, epoch, data_buffer_size,
                disable_iterator_cache,
            )  # fmt: skip
        # fairseq-eval-lm has no default batch size: one stream gives every token its whole context
        streams = Streams(dataset, max_sentences or 1, num_shards, shard_id, self.args.tokens_per_sample)
        return StreamIterator(
            dataset=streams,
            collate_fn=_only,
            batch_sampler=[[i] for i in range(len(streams))],
            seed=seed,
            num_workers=0,  # a batch is a slice of an array: nothing to prepare in another process
            epoch=epoch,
            disable_shuffling=True,
            worker=shard_id,
            workers=num_shards,
        )

    def train_step(self, sample: Dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As fairseq's; the memory of a checkpoint comes from the CPU."""
        if "memory" in sample["net_input"]:  # not in the dummy batch of a worker that has run out of text
            sample["net_input"]["memory"].to(sample["target"].device)
        return super().train_step(sample, *args, **kwargs)

    def eval_lm_dataloader(
        self,
        dataset: Any,
        max_tokens: Optional[int] = 36000,
        batch_size: Optional[int] = None,
        max_positions: Any = None,
        num_shards: int = 1,
        shard_id: int = 0,
        num_workers: int = 1,
        data_buffer_size: int = 10,
        context_window: int = 0,
    ) -> Any:
        if context_window > 0:
            raise UsageError(f"--context-window {context_window}: leave it out, a block sees those before it")
        return self.get_batch_iterator(
            dataset, max_tokens, batch_size, max_positions, num_shards=num_shards, shard_id=shard_id,
            num_workers=num_workers, data_buffer_size=data_buffer_size,
        ).next_epoch_itr(shuffle=False)  # fmt: skip


class StreamText(FairseqDataset):
    """All tokens of a split in a row. ``sizes`` and ``len`` are those of its lines."""

    def __init__(self, lines: Any, dictionary: Any) -> None:
        dtype = np.uint16 if len(dictionary) < 2**16 else np.int32
        parts = [lines[i].numpy().astype(dtype) for i in range(len(lines))]
        self.tokens = np.concatenate(parts) if parts else np.zeros(0, dtype)
        self.sizes, self.pad, self.eos = lines.sizes, dictionary.pad(), dictionary.eos()

    def __len__(self) -> int:
        return len(self.sizes)


class Streams(torch.utils.data.Dataset):
    """Item k: block k of this worker's streams, as a whole batch."""

    def __init__(self, text: StreamText, rows: int, workers: int, worker: int, block: int) -> None:
        count = rows * workers
        self.text, self.rows, self.block = text, rows, block
        self.length = -(-len(text.tokens) // count)  # of a stream; the last one may be shorter
        if self.length * (count - 1) >= len(text.tokens):
            raise UsageError(
                f"--batch-size {rows} on {workers} worker(s): a text of {len(text.tokens)} tokens cannot be cut into "
                f"{count} streams; lower --batch-size (--batch-size-valid for validation)"
            )
        self.first = worker * rows

    def __len__(self) -> int:
        return -(-self.length // self.block)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        start, stop = index * self.block, min((index + 1) * self.block, self.length)
        source = torch.full((self.rows, stop - start), self.text.pad, dtype=torch.long)
        target = source.clone()
        for row in range(self.rows):
            offset = (self.first + row) * self.length
            target_tokens = self.text.tokens[offset + start : min(offset + stop, len(self.text.tokens))]
            target[row, : len(target_tokens)] = torch.from_numpy(target_tokens.astype(np.int64))
            source[row, : len(target_tokens)] = self._source(offset + start, len(target_tokens))
        return {
            "id": torch.arange(self.first, self.first + self.rows),
            "net_input": {"src_tokens": source},
            "target": target,
            "nsentences": self.rows,
            "ntokens": int(target.ne(self.text.pad).sum()),
        }

    def _source(self, start: int, count: int) -> torch.Tensor:
        """The ``count`` tokens one before position ``start``; the text begins after an end of sentence."""
        tokens = self.text.tokens[max(0, start - 1) : max(0, start - 1) + count].astype(np.int64)
        if start == 0 and count:
            tokens = np.concatenate([[self.text.eos], tokens[: count - 1]])
        return torch.from_numpy(tokens)


def _only(items: List[Dict[str, Any]]) -> Dict[str, Any]:
    """An item is a batch already."""
    return items[0]
