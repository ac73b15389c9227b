"""Invariants of training and of how an attention is computed: reload, gradients, frozen parts, ways, half precision."""

import io
from typing import Any, List, Tuple

import torch
from torch import Tensor

from fairseq_synth.checks.case import LENGTHS, Case, padding_mask, states
from fairseq_synth.checks.compare import attend, decode, gap, model_inputs
from fairseq_synth.checks.registry import invariant
from fairseq_synth.modules.attention import SynthAttention
from fairseq_synth.modules.scorers.logits import HeadLogits
from fairseq_synth.modules.weighted_sum import whole as reference_way
from fairseq_synth.modules.weighted_sum.by_heads import split_case
from fairseq_synth.modules.weighted_sum.choose import WAYS


@invariant("save, reload, same outputs", tolerance=0.0)
def reload(case: Case) -> float:
    model, inputs = case.model(), model_inputs()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = case.model(seed=99)
    other.load_state_dict(torch.load(file, weights_only=True))
    return gap(decode(other, *inputs), decode(model, *inputs))


@invariant("every trainable parameter gets a finite gradient; the scorers' are not zero", tolerance=0.0)
def gradients(case: Case) -> float:
    model = case.model().train()
    source, target = model_inputs()
    torch.log_softmax(decode(model, source, target), dim=-1)[..., 4:9].sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is None or not bool(torch.isfinite(parameter.grad).all()):
            raise ValueError(f"{name} has no finite gradient")
        if ".scorer." in name and not bool(parameter.grad.abs().sum() > 0):
            raise ValueError(f"{name}: the gradient is zero")
    return 0.0


@invariant("training moves no buffer", tolerance=0.0)
def buffers(case: Case) -> float:
    model = case.model().train()
    before = {n: b.clone() for n, b in model.named_buffers()}
    _train(model)
    return max(gap(b, before[n]) for n, b in model.named_buffers() if b.numel())


@invariant("training moves nothing that --freeze names, and the rest", tolerance=0.0)
def freeze(case: Case) -> float:
    attention = case.attention()
    words = ["attention"] + (["scorer"] if any(True for _ in attention.scorer.parameters()) else [])
    worst = 0.0
    for word in words:
        model = case._replace(options=(*case.options, ("freeze", word))).model().train()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        _train(model)
        moved = {n: gap(p, before[n]) for n, p in model.named_parameters()}
        frozen = set(model.frozen_parameters)
        worst = max([worst, *(moved[n] for n in frozen)])
        still = [n for n in moved if n not in frozen and moved[n] == 0.0]
        if still:
            raise ValueError(f"--freeze {word}: {still[0]} did not move, and is not frozen")
    return worst


def _train(model: Any) -> None:
    """Two updates, with weight decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)
    source, target = model_inputs()
    for _ in range(2):
        optimizer.zero_grad()
        decode(model, source, target).pow(2).mean().backward()
        optimizer.step()


@invariant("every way that takes a case gives what the reference gives, and its gradients")
def ways(case: Case) -> float:
    attention, x = case.attention(right_padded=True), states(max(LENGTHS), len(LENGTHS))
    worst = 0.0
    for pads in (None, padding_mask()):
        lengths = (max(LENGTHS),) * len(LENGTHS) if pads is None or case.side == "cross" else LENGTHS
        whole = attention.case(x, x, pads)
        for one in split_case(whole) if isinstance(whole.logits, HeadLogits) else [whole]:
            expected = _with_gradients(attention, reference_way.attend(one), lengths)
            for way in WAYS:
                answer = way.attend(one) if way.takes(one) else None
                if answer is not None:
                    got = _with_gradients(attention, answer, lengths)
                    worst = max([worst, *(gap(a, b) for a, b in zip(got, expected))])
    return worst


def _with_gradients(attention: SynthAttention, answer: Any, lengths: Tuple[int, ...]) -> List[Tensor]:
    """Outputs at real tokens, and the gradients of the attention's parameters."""
    outputs = torch.cat([answer[0][:n, b] for b, n in enumerate(lengths)])
    trained = [p for p in attention.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(outputs.pow(2).sum(), trained, retain_graph=True, allow_unused=True)
    return [outputs.detach(), *(g for g in gradients if g is not None)]


@invariant("bfloat16, float16 and autocast stay finite and close", tolerance=0.08)
def half_precision(case: Case) -> float:
    x, mask = states(max(LENGTHS), len(LENGTHS)), padding_mask()
    attention = case.attention(right_padded=True)
    full = attend(attention, x, key_padding_mask=mask)
    worst = 0.0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = attend(attention.float(), x.float(), key_padding_mask=mask)
    for dtype in (torch.bfloat16, torch.float16):
        try:
            half = attend(attention.to(dtype), x.to(dtype), key_padding_mask=mask)
        except RuntimeError as error:
            if "not implemented for 'Half'" not in str(error):
                raise
            continue  # an old torch on a CPU: bfloat16 has been checked
        for b, n in enumerate(LENGTHS):
            worst = max(worst, gap(half[:n, b], full[:n, b]), gap(mixed[:n, b], full[:n, b]))
    return worst
