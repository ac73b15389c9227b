"""Every model on the GPU of fake_cuda.py, in a process of its own:

    python user_dir_tests/gpu_cases.py [all]

Prints one JSON object: cases, their number; failed, case -> why; waits, training and decoding -> function -> the most
waits in a case (of decoding: per step) and the file. A case trains (forward and backward of a criterion) or decodes
(beam search) and compares with the CPU. Without ``all`` every model meets float32 and another precision, and every
kind of padding is met.
"""

# ruff: noqa: I001  (fake_cuda comes before anything else that imports torch)
import copy
import json
import logging
import math
import sys
from argparse import Namespace

from fake_cuda import Gpu, Watch, to_gpu, torch

import built
from fairseq.logging import metrics

import fairseq_synth  # noqa: F401
from fairseq_synth.modules.scorers import scorer_names
from fairseq_synth.modules.stream_memory import StreamMemory

PRECISIONS = ("float32", "float16", "bfloat16", "autocast float16", "autocast bfloat16")
PADS = ("none", "right", "left")
LOSSES = ("label_smoothed_cross_entropy", "chunked_label_smoothed_cross_entropy")
# options of the models: no dropout, since the masks of the two sides would differ
EXACT = ["--dropout", "0"]
SPAN, MEMORY = ["--decoder-adaptive-span", "5"], ["--persistent-memory", "3"]
DROPOUT = " dropout"
EXTRAS = {"": [], " span": SPAN, " memory": MEMORY, " span memory": SPAN + MEMORY}


def models(everything):
    """name -> arguments"""
    specs = [*scorer_names(), "random+dot_product"]
    found = {"transformer": built.architecture("transformer", *EXACT)}
    for spec in specs:
        options = [*EXACT, *(["--synthesizer-max-length", str(built.LONGEST)] if spec != "dot_product" else [])]
        decoder, encoder = ["--decoder-self-attention", spec], ["--encoder-self-attention", spec]
        chosen = EXTRAS if everything or spec in ("dot_product", "random+dot_product") else {"": []}
        for extra, flags in chosen.items():
            both = [*encoder, *decoder, *flags, *options]
            found[f"synth_transformer {spec}{extra}"] = built.architecture("synth_transformer", *both)
            if everything or extra in ("", " span memory"):
                lm = [*decoder, *flags, *options]
                found[f"synth_transformer_lm {spec}{extra}"] = built.architecture("synth_transformer_lm", *lm)
    cross = ["--cross-attention", "random", "--synthesizer-max-length", str(built.LONGEST)]
    found["synth_transformer cross random"] = built.architecture("synth_transformer", *cross, *EXACT)
    frozen = ["--freeze", "ffn,attention", "--frozen-init", "1", "--checkpoint-activations"]
    found["synth_transformer frozen"] = built.architecture("synth_transformer", *frozen, *EXACT)
    for spec in ("random", "random+dot_product"):  # masks differ from the CPU's: no more than that it runs
        found[f"synth_transformer {spec}{DROPOUT}"] = built.architecture(
            "synth_transformer", "--encoder-self-attention", spec, "--attention-dropout", "0.3", *MEMORY, *SPAN
        )
    found["adaptive_span_lm"] = built.architecture("adaptive_span_lm", *EXACT)
    found["all_attention_lm"] = built.architecture("all_attention_lm_enwik8_small", *EXACT)
    return found


def cases(everything):
    """(name, arguments, precision, pads, loss or "decode")"""
    for number, (name, arguments) in enumerate(models(everything).items()):
        turn = [(precision, pads) for precision in PRECISIONS for pads in PADS]
        if not everything:  # a precision and a kind of padding for each model in turn
            turn = [("float32", PADS[number % 3]), (PRECISIONS[1 + number % 4], PADS[(number + 1) % 3])]
        for i, (precision, pads) in enumerate(turn):
            yield name, arguments, precision, pads, LOSSES[(number + i) % 2]
        for precision, pads in turn if everything else [(PRECISIONS[number % 5], PADS[1 + number % 2])]:
            yield name, arguments, precision, pads, "decode"


def autocast(precision, device):
    dtype = getattr(torch, precision.split()[-1])
    return torch.autocast(device, dtype=dtype, enabled=precision.startswith("autocast"))


def sample(model, pads):
    made = built.sample(model, pads == "left")
    if pads == "none":
        for name in ("src_tokens", "prev_output_tokens"):
            if name in made["net_input"]:
                made["net_input"][name] = made["net_input"][name][:1]
        made["net_input"]["src_lengths"] = made["net_input"]["src_lengths"][:1]
        made.update(target=made["target"][:1], ntokens=made["target"].size(1), nsentences=1)
    return made


def train(model, task, batch, device, precision, loss):
    """The loss, summed over two blocks where the model remembers; gradients stay in the model."""
    criterion, total = built.build_criterion(task, loss), 0.0
    memory = StreamMemory() if not hasattr(model.decoder, "embed_positions") else None
    for _ in range(1 if memory is None else 2):
        if memory is not None:
            batch = {**batch, "net_input": {**batch["net_input"], "memory": memory}}
        with autocast(precision, device):
            found = criterion(model, batch)[0]
        found.backward()
        total = total + found.detach()
    return total


def gradient(model):
    return torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])


def on_host(x):
    return x.on_host if isinstance(x, Gpu) else x


def compare_training(here, there, task, batch, precision, loss, watch, exact):
    """None, or what differs from the CPU; if not exact, only whether it is finite."""
    metrics.reset()
    with watch:
        ours = on_host(train(there.train(), task, to_gpu(batch), "cuda", precision, loss))
        there_gradient = on_host(gradient(there))
    if not exact:
        return None if torch.isfinite(ours) and torch.isfinite(there_gradient).all() else "not finite"
    metrics.reset()
    theirs = train(here.train(), task, batch, "cpu", precision, loss)
    tolerance = 1e-5 if precision == "float32" else 0.03
    if not torch.allclose(ours, theirs, rtol=tolerance):
        return f"loss {float(ours)}, on the CPU {float(theirs)}"
    distance = float((there_gradient - gradient(here)).norm() / gradient(here).norm())
    if not distance < (2e-4 if precision == "float32" else 0.2):
        return f"gradients differ from the CPU's by {distance:.2g} of their norm"
    return None


def search(task, model, batch, device, precision):
    """Best score of every sentence, and how many steps were made."""
    language_model = not hasattr(model, "encoder")
    options = Namespace(beam=3, max_len_a=0, max_len_b=5, min_len=4)
    generator, steps = task.build_generator([model], options), []
    step = generator.model.forward_decoder
    generator.model.forward_decoder = lambda *args, **kwargs: (steps.append(1), step(*args, **kwargs))[1]
    prefix = batch["net_input"]["src_tokens"][:, :1] if language_model else None
    with torch.no_grad(), autocast(precision, device):
        found = generator.generate([model], {"net_input": dict(batch["net_input"])}, prefix_tokens=prefix)
    return [float(on_host(hypotheses[0]["score"])) for hypotheses in found], len(steps)


def compare_decoding(here, there, task, batch, precision, watch):
    with watch:
        ours, steps = search(task, there.eval(), to_gpu(batch), "cuda", precision)
    watch.steps = steps
    theirs, _ = search(task, here.eval(), batch, "cpu", precision)
    tolerance = 1e-4 if precision == "float32" else 0.3
    if any(not math.isfinite(a) or abs(a - b) > tolerance for a, b in zip(ours, theirs)):
        return f"scores {ours}, on the CPU {theirs}"
    return None


def run(arguments, precision, pads, kind, exact):
    """(None or what is wrong, Watch)"""
    task, here = built.build(arguments)
    if not precision.startswith("autocast"):
        here = here.to(getattr(torch, precision))
    there, watch, batch = to_gpu(copy.deepcopy(here)), Watch(), sample(here, pads)
    try:
        if kind == "decode":
            return compare_decoding(here, there, task, batch, precision, watch), watch
        return compare_training(here, there, task, batch, precision, kind, watch, exact), watch
    except (RuntimeError, TypeError, NotImplementedError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}", watch


def main(everything):
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    failed, waits, count = {}, {"training": {}, "decoding": {}}, 0
    for name, arguments, precision, pads, kind in cases(everything):
        wrong, watch = run(arguments, precision, pads, kind, not name.endswith(DROPOUT))
        count += 1
        if wrong:
            failed[f"{name}, {precision}, pads {pads}, {kind}"] = wrong
        most = waits["decoding" if kind == "decode" else "training"]
        for place, number in watch.waits.items():
            function, _, file = place.partition(", ")
            number = math.ceil(number / watch.steps)
            most[function] = (max(number, most.get(function, (0, ""))[0]), file)
    print(json.dumps({"cases": count, "failed": failed, "waits": waits}))


if __name__ == "__main__":
    main("all" in sys.argv[1:])
