"""--criterion chunked_*: every model, every option and the real commands, beside fairseq's criterions."""

import socket
import subprocess
import sys

import pytest
import torch
from built import architecture, build, build_criterion, sample
from conftest import ENVIRONMENT, REPOSITORY, call_command, generate_args, train_args
from fairseq.logging import metrics

from fairseq_synth.criterions import chunked_loss
from fairseq_synth.errors import UsageError, explain

TIED = "--share-decoder-input-output-embed"
DOT = ["--decoder-self-attention", "dot_product"]
MODELS = {
    "transformer": architecture("transformer"),
    "transformer, tied": architecture("transformer", "--share-all-embeddings"),
    "transformer_lm": architecture("transformer_lm"),
    "transformer_lm, tied": architecture("transformer_lm", TIED),
    "synth_transformer": architecture("synth_transformer", "--encoder-self-attention", "random", *DOT),
    "synth_transformer, small embeddings": architecture(
        "synth_transformer", "--share-all-embeddings", "--embedding-dim", 8
    ),
    "synth_transformer, frozen output": architecture("synth_transformer", "--freeze", "output"),
    "synth_transformer, output on the fly": architecture(
        "synth_transformer", "--freeze", "output,ffn", "--frozen-init", 1, "--store-frozen", "seed",
        "--frozen-on-the-fly",
    ),
    "synth_transformer, checkpointed": architecture("synth_transformer", "--checkpoint-activations"),
    "synth_transformer_lm": architecture("synth_transformer_lm", TIED, "--decoder-self-attention", "random"),
    "adaptive_span_lm": architecture("adaptive_span_lm", "--span-loss", 0),
    "all_attention_lm": architecture("all_attention_lm_enwik8_small", "--span-loss", 0),
}  # fmt: skip
PLAIN, SMOOTHED = "cross_entropy", "label_smoothed_cross_entropy"
CRITERIONS = {
    "plain": (PLAIN, {}),
    "smoothed": (SMOOTHED, {"report_accuracy": True}),
    "prefix": (SMOOTHED, {"report_accuracy": True, "ignore_prefix_size": 2}),
    "sentences": (SMOOTHED, {"sentence_avg": True}),
    "plain, sentences": (PLAIN, {"sentence_avg": True}),
}


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(chunked_loss, "chunk_tokens", lambda vocabulary, device: 3)


def run(arguments, name, options, reduce=True, train=True, pad_left=False, scale=1.0):
    """Loss, sample size, what is logged, gradients; the dropout masks are those of seed 1."""
    task, model = build(arguments)
    loss_of = build_criterion(task, name, **options)
    model.train(train)
    torch.manual_seed(1)
    if not train:  # models for evaluation alone are built without values
        for parameter in model.parameters():
            parameter.data.normal_(std=0.3)
    with torch.set_grad_enabled(train):
        loss, size, logged = loss_of(model, sample(model, pad_left), reduce)
    if train:
        (scale * loss).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss, size, logged, gradients, loss_of


def reported(criterion, logged):
    with metrics.aggregate() as found:
        criterion.reduce_metrics([logged, logged])
    return found.get_smoothed_values()


def assert_equal(found, expected):
    for a, b in zip(found[:2], expected[:2]):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert found[2].keys() == expected[2].keys()
    for name, value in expected[2].items():
        torch.testing.assert_close(found[2][name], value, rtol=1e-5, atol=1e-5, msg=name)
    assert found[3].keys() == expected[3].keys() and (found[3] or not expected[0].requires_grad)
    for name, gradient in expected[3].items():
        torch.testing.assert_close(found[3][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("model", sorted(MODELS))
def test_every_model(model, train):
    if train and "on the fly" in model:
        pytest.skip("--frozen-on-the-fly does not train")
    name, options = CRITERIONS["smoothed"]
    assert_equal(*(run(MODELS[model], n, options, train=train, scale=8.0) for n in (f"chunked_{name}", name)))


@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("pad_left", [True, False])
@pytest.mark.parametrize("criterion", sorted(CRITERIONS))
def test_every_option(criterion, pad_left, reduce):
    if not reduce and criterion == "prefix":
        pytest.skip("fairseq's shapes with a prefix are those of the targets without it, as below")
    name, options = CRITERIONS[criterion]
    # fairseq 0.12.2's own decoder gives nan where a target begins with pads
    model = MODELS["synth_transformer" if pad_left else "transformer"]
    found, expected = (run(model, n, options, reduce, True, pad_left) for n in (f"chunked_{name}", name))
    assert_equal(found, expected)
    if reduce:
        ours, theirs = (reported(made[4], made[2]) for made in (found, expected))
        assert ours.keys() == theirs.keys() and "ppl" in ours
        assert all(ours[name] == pytest.approx(value, abs=2e-3) for name, value in theirs.items())


@pytest.mark.parametrize("model", ["transformer, tied", "synth_transformer"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(model, dtype):
    if dtype == torch.float16 and not hasattr(torch, "get_autocast_dtype"):
        pytest.skip("no float16 autocast on the CPU before torch 2.4")
    with torch.autocast("cpu", dtype=dtype):
        found, expected = (run(MODELS[model], name, {}) for name in (f"chunked_{SMOOTHED}", SMOOTHED))
    torch.testing.assert_close(found[0], expected[0], rtol=2e-3, atol=0)
    for name, gradient in expected[3].items():
        assert found[3][name].dtype == gradient.dtype == torch.float32
        assert (found[3][name] - gradient).norm() < 0.05 * gradient.norm() + 1e-3, name


def test_other_output_layers_are_refused():
    """Also those that look like a linear layer but do something else."""
    task, model = build(architecture("transformer_lm", "--adaptive-softmax-cutoff", "8,12"))
    loss_of = build_criterion(task, f"chunked_{SMOOTHED}")
    with pytest.raises(UsageError, match="chunked_label_smoothed_cross_entropy: .* adaptive softmax, .*adaptive_loss"):
        loss_of(model, sample(model))
    for change in ("bias", "scale", "missing"):
        task, model = build(MODELS["transformer"])
        projection = model.decoder.output_projection
        if change == "bias":
            projection.register_forward_hook(lambda module, inputs, output: output + 1)
        elif change == "scale":
            model.decoder.output_layer = lambda features, layer=model.decoder.output_layer: 2 * layer(features)
        else:
            model.decoder.output_projection = torch.nn.Identity()
        with pytest.raises(UsageError, match="is not one linear layer; take --criterion label_smoothed"):
            loss_of(model, sample(model))
    task, model = build(MODELS["transformer"])
    model.decoder.forward = lambda prev_output_tokens, **others: None
    with pytest.raises(UsageError, match="has no features_only=True"):
        loss_of(model, sample(model))


def test_no_trace_is_left_in_the_model():
    task, model = build(MODELS["transformer"])
    loss_of = build_criterion(task, f"chunked_{PLAIN}")
    before = model(**sample(model)["net_input"])[0].shape
    loss_of(model, sample(model))
    with pytest.raises(IndexError):  # the hook goes even if the loss fails
        loss_of(model, {**sample(model), "target": torch.zeros(3)})
    assert not model.decoder._forward_hooks and model(**sample(model)["net_input"])[0].shape == before


# ---------------------------------------------------------------------- commands
def losses(text):
    """What validation printed, up to the speed."""
    return [line.split("valid on")[1].split("| wps")[0] for line in text.splitlines() if "valid on" in line]


PRECISIONS = [[], ["--bf16"], ["--fp16", "--fp16-no-flatten-grads"], ["--memory-efficient-bf16"],
              ["--store-ema", "--ema-decay", "0.5", "--update-freq", "2"]]  # fmt: skip


@pytest.mark.parametrize("extra", PRECISIONS, ids=" ".join)
def test_training_and_validating(extra, corpus, tmp_path):
    """Equal weights after two updates in float32, nearly equal ones in half precision; what was trained translates."""
    if "--fp16" in extra and not hasattr(torch, "get_autocast_dtype"):
        pytest.skip("no float16 layer norm on the CPU before torch 2.4")
    found = {}
    for name, criterion in (("ours", f"chunked_{SMOOTHED}"), ("stock", SMOOTHED)):
        smoothing = ("--criterion", criterion, "--label-smoothing", "0.1", "--report-accuracy")
        args = train_args(corpus, tmp_path / name, *smoothing, *extra)
        if "--store-ema" in extra:
            args = [a for a in args if a != "--max-tokens"]
            args[args.index("200")] = "--max-tokens=100"
        text = call_command("train", *args)
        state = torch.load(tmp_path / name / "checkpoint_last.pt", weights_only=False)
        found[name] = losses(text), {k: v for k, v in state["model"].items() if v.is_floating_point()}
    half = any("16" in a for a in extra)
    ours, stock = found["ours"][1], found["stock"][1]
    for name, value in stock.items():
        if name.endswith("_float_tensor"):  # a buffer of fairseq 0.12.2 that nobody initialises
            continue
        torch.testing.assert_close(ours[name].float(), value.float(), rtol=0, atol=0.03 if half else 1e-4, msg=name)
    checkpoint = tmp_path / "ours" / "checkpoint_last.pt"
    if not extra:
        assert found["ours"][0] == found["stock"][0] != []
        assert "Generate test with beam=3" in call_command("generate", *generate_args(corpus, checkpoint))


def test_an_adaptive_softmax_is_refused_before_anything_is_written(corpus, tmp_path):
    args = train_args(corpus, tmp_path, "--criterion", f"chunked_{PLAIN}", "--adaptive-softmax-cutoff", "8,12")
    args.remove("--share-all-embeddings")
    with pytest.raises(Exception) as caught:
        call_command("train", *args)
    assert "adaptive softmax" in explain(caught.value) and not list(tmp_path.glob("*.pt"))


def test_data_parallel_training():
    """Two processes, both of fairseq's back ends, unused parameters looked for or not, two batches per update."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port),
               str(REPOSITORY / "user_dir_tests" / "ddp_losses.py")]  # fmt: skip
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.count(": equal") == 15
