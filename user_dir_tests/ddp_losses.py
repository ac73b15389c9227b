"""Run by torchrun: gradients of chunked losses under data parallel training, beside one process with both batches.

Prints a line per case; exits with 1 if one differs."""

import sys
from argparse import Namespace

import torch
import torch.distributed as dist
from built import architecture, build, build_criterion, sample
from fairseq.models import DistributedFairseqModel

import fairseq_synth  # noqa: F401

LOSS = "label_smoothed_cross_entropy"
MODELS = {
    "tied": architecture("transformer", "--share-all-embeddings", "--dropout", "0"),
    "untied": architecture("transformer", "--dropout", "0"),
    "random": architecture("synth_transformer", "--encoder-self-attention", "random", "--dropout", "0"),
    "frozen": architecture("synth_transformer", "--freeze", "output", "--dropout", "0"),
    "adaptive_span_lm": architecture("adaptive_span_lm", "--span-loss", "0", "--dropout", "0"),
}


def wrap(model, backend, unused):
    args = Namespace(tpu=False, ddp_backend=backend, device_id=None, broadcast_buffers=False, bucket_cap_mb=25,
                     find_unused_parameters=unused, gradient_as_bucket_view=False, ddp_comm_hook="none",
                     heartbeat_timeout=-1)  # fmt: skip
    return DistributedFairseqModel(args, model, dist.group.WORLD, torch.device("cpu"))


def step(model, loss_of, seeds):
    """Forward and backward of one batch per seed; the last one is where gradients are exchanged."""
    for seed in seeds[:-1]:
        with model.no_sync():
            loss_of(model, sample(model, seed=seed))[0].backward()
    loss_of(model, sample(model, seed=seeds[-1]))[0].backward()


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def differs(arguments, backend, unused, rank):
    """Two batches per rank (--update-freq 2), against stock's loss of all four in one process."""
    task, alone = build(arguments)
    for seed in (3, 5, 7, 9):
        build_criterion(task, LOSS)(alone.train(), sample(alone, seed=seed))[0].backward()
    together = build(arguments)[1].train()
    wrapped = wrap(together, backend, unused)
    step(wrapped, build_criterion(task, f"chunked_{LOSS}"), (3, 5) if rank == 0 else (7, 9))
    if hasattr(wrapped, "all_reduce_grads"):
        wrapped.all_reduce_grads()
    expected, found = gradients(alone), gradients(together)
    if expected.keys() != found.keys():
        return f"gradients of {sorted(expected.keys() ^ found.keys())}"
    far = [n for n, g in expected.items() if not torch.allclose(2 * found[n], g, rtol=1e-4, atol=1e-5)]
    return far[0] if far else ""


def main():
    dist.init_process_group("gloo")
    rank, failed = dist.get_rank(), False
    for name, arguments in MODELS.items():
        for backend, unused in (("legacy_ddp", False), ("pytorch_ddp", False), ("pytorch_ddp", True)):
            difference = differs(arguments, backend, unused, rank)
            failed |= bool(difference)
            if difference or rank == 0:
                print(f"rank {rank}, {name} {backend} unused={unused}: {difference or 'equal'}", flush=True)
    dist.destroy_process_group()
    sys.exit(failed)


if __name__ == "__main__":
    main()
