"""Data-parallel training on CPUs: `torchrun --nproc_per_node N fairseq-train --cpu`, one model.

fairseq-hydra-train decides on distributed training before it imports the user directory, so it is
out of reach.
"""

import os

import torch
from torch.nn.parallel import DistributedDataParallel

from .patching import replace

_LAUNCHER_VARIABLES = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK")


def join_cpu_torchrun() -> bool:
    """Under torchrun without GPUs, fairseq starts N independent trainings, or divides by 0 GPUs.

    Items 7 and 8; fairseq main takes its world size from the number of GPUs and returns early for
    1, 0.12.2 computes `rank % 0`. GPU launches are left to fairseq.
    """
    from fairseq.distributed import utils as distributed_utils

    def joining(stock):
        def call_main(cfg, main, **kwargs):
            launched = _launched_on_cpu(cfg)
            if launched:
                _use_launcher(cfg.distributed_training)
            try:
                result = stock(cfg, main, **kwargs)
            except SystemExit:  # all processes were asked to stop
                _leave(launched)
                raise
            _leave(launched)
            return result

        return call_main

    replace(distributed_utils, "call_main", joining)
    return True


def allow_ddp_on_cpu() -> bool:
    """`--ddp-backend pytorch_ddp` passes GPU numbers for models on the CPU, which PyTorch refuses.

    Item 9; all fairseq versions. On 0.12.2 it also fails with "parameters that were not used" (item
    15): the encoder's fused-kernel duplicates never get a gradient, so unused parameters are looked
    for when they exist.
    """
    from fairseq.models import distributed_fairseq_model

    def for_devices_of_module(stock):
        def build_ddp(module, device_ids=None, output_device=None, find_unused_parameters=False, **kwargs):
            if all(parameter.device.type == "cpu" for parameter in module.parameters()):
                device_ids = output_device = None
            return stock(
                module,
                device_ids=device_ids,
                output_device=output_device,
                find_unused_parameters=find_unused_parameters or _has_fast_path_duplicates(module),
                **kwargs,
            )

        return build_ddp

    if distributed_fairseq_model.DistributedDataParallel is DistributedDataParallel:
        replace(distributed_fairseq_model, "DistributedDataParallel", for_devices_of_module)
    return True


def gather_objects_on_cpu() -> bool:
    """all_gather_list allocates a CUDA buffer even for processes that talk over gloo.

    Item 10; all fairseq versions. It is called for logging outputs that cannot be summed, and by
    fairseq-validate.
    """
    from fairseq import utils
    from fairseq.distributed import utils as distributed_utils

    def for_gloo(stock):
        def all_gather_list(data, group=None, max_size=16384):
            group = distributed_utils.get_global_group() if group is None else group
            if torch.distributed.get_backend(group) != "gloo":
                return stock(data, group, max_size)
            gathered = [None] * distributed_utils.get_world_size(group)
            torch.distributed.all_gather_object(gathered, utils.move_to_cpu(data), group=group)
            return gathered

        return all_gather_list

    replace(distributed_utils, "all_gather_list", for_gloo)
    return True


def _launched_on_cpu(cfg) -> bool:
    if cfg.distributed_training.distributed_init_method is not None or cfg.common.tpu:
        return False
    if torch.cuda.is_available() and not cfg.common.cpu:
        return False
    launched = all(variable in os.environ for variable in _LAUNCHER_VARIABLES)
    return launched and int(os.environ["WORLD_SIZE"]) > 1


def _use_launcher(distributed) -> None:
    distributed.distributed_init_method = "env://"
    distributed.distributed_world_size = int(os.environ["WORLD_SIZE"])
    distributed.distributed_rank = int(os.environ["RANK"])
    distributed.distributed_no_spawn = True  # the launcher made the processes
    distributed.device_id = 0
    if distributed.distributed_backend == "nccl":  # fairseq's default, GPU only
        distributed.distributed_backend = "gloo"


def _leave(launched: bool) -> None:
    """fairseq leaves gloo's threads to the interpreter's exit, which now and then aborts."""
    if launched and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _has_fast_path_duplicates(module) -> bool:
    return any(name.endswith(".fc1_weight") for name, _ in module.named_parameters())
