"""Small models of every kind, built from the command line's options alone, and batches for them."""

import atexit
import copy
import functools
import shutil
import tempfile
from argparse import Namespace
from pathlib import Path

import torch
from fairseq import options, tasks
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf

PAD, SYMBOLS = 1, 24
SIZES = {"layers": 2, "embed-dim": 16, "ffn-embed-dim": 24, "attention-heads": 2}
LENGTHS = (7, 5, 2)  # of the sentences of a batch
LONGEST = 12


def flags(sizes, prefix=""):
    return [part for name, value in sizes.items() for part in (f"--{prefix}{name}", str(value))]


def architecture(arch, *extra):
    """Options of a small model: translation, language models, sequential language models; fairseq's and ours."""
    if arch in ("transformer", "synth_transformer"):
        return ["--task", "translation", "-s", "src", "-t", "tgt", "--arch", arch,
                *flags(SIZES, "encoder-"), *flags(SIZES, "decoder-"), *extra]  # fmt: skip
    task = ["--task", "language_modeling", "--tokens-per-sample", str(LONGEST), "--arch", arch]
    if arch == "transformer_lm":
        task += ["--decoder-input-dim", str(SIZES["embed-dim"]), "--decoder-output-dim", str(SIZES["embed-dim"])]
    if arch in ("transformer_lm", "synth_transformer_lm"):
        return [*task, *flags(SIZES, "decoder-"), *extra]
    memory = ["--persistent-memory", "3"] if arch.startswith("all_attention_lm") else []
    return [*task, *flags(SIZES), "--attention-span", "24", *memory, *extra]


@functools.lru_cache(maxsize=None)
def dictionaries(symbols=SYMBOLS):
    """A data folder with dictionaries and nothing else."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    words = Dictionary()
    for i in range(symbols - len(words)):
        words.add_symbol(f"w{i}")
    for name in ("dict.src.txt", "dict.tgt.txt", "dict.txt"):
        words.save(str(folder / name))
    return folder


@functools.lru_cache(maxsize=None)
def _parsed(arguments, symbols):
    """The configuration that fairseq-train makes of its options: a second's work."""
    given = [str(dictionaries(symbols)), *arguments, "--cpu", "--optimizer", "sgd", "--lr", "0.1"]
    return convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), given))


def build(arguments, seed=1, symbols=SYMBOLS):
    """Task and model."""
    cfg = copy.deepcopy(_parsed(tuple(map(str, arguments)), symbols))
    task = tasks.setup_task(cfg.task)
    torch.manual_seed(seed)
    return task, task.build_model(cfg.model)


def build_criterion(task, name, sentence_avg=False, **options):
    """options: of label smoothing."""
    if "label_smoothed" in name:
        options = {"label_smoothing": 0.1, "report_accuracy": False, "ignore_prefix_size": 0, **options}
    return CRITERION_REGISTRY[name].build_criterion(Namespace(sentence_avg=sentence_avg, **options), task)


def tokens(lengths=LENGTHS, pad_left=False, seed=3, symbols=SYMBOLS):
    """B x S, padded on one side."""
    draw = torch.Generator().manual_seed(seed)
    batch = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in enumerate(lengths):
        start = max(lengths) - length if pad_left else 0
        batch[row, start : start + length] = torch.randint(4, symbols, (length,), generator=draw)
    return batch


def sample(model, pad_left=False, seed=3, symbols=SYMBOLS):
    """A training batch: what a criterion takes."""
    source = tokens(LENGTHS, pad_left, seed, symbols)
    target_lengths = (6, 4, 3) if hasattr(model, "encoder") else LENGTHS
    previous = tokens(target_lengths, pad_left, seed + 1, symbols)
    target = torch.where(previous.eq(PAD), previous, (previous - 4 + seed) % (symbols - 4) + 4)
    net_input = {"src_tokens": previous, "src_lengths": previous.ne(PAD).sum(1)}
    if hasattr(model, "encoder"):
        net_input = {"src_tokens": source, "src_lengths": source.ne(PAD).sum(1), "prev_output_tokens": previous}
    return {"net_input": net_input, "target": target, "ntokens": sum(target_lengths), "nsentences": len(target)}
