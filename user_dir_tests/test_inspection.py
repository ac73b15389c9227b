"""fairseq-synth doctor and inspect, and the scalars for the training log."""

import copy
import json
import re
import sys
from argparse import Namespace

import pytest
import torch
from conftest import call_command, train_args
from fairseq.logging import metrics
from fairseq.models import ARCH_MODEL_REGISTRY

from fairseq_synth import compat, training_log
from fairseq_synth.auxiliary_loss import add_auxiliary_loss
from fairseq_synth.cli import main
from fairseq_synth.errors.installation import explain_import
from fairseq_synth.inspection import environment, findings
from fairseq_synth.inspection.loading import open_checkpoint
from fairseq_synth.modules.scorers.mixture import Mixture


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("inspect")
    call_command("train", *train_args(corpus, folder, "--encoder-adaptive-span", "20", "--encoder-self-attention",
                                      "random+dot_product", "--decoder-self-attention", "random*1,dot_product*1",
                                      "--synthesizer-max-length", "16", "--seed", "7", "--freeze", "ffn"))  # fmt: skip
    return str(folder / "checkpoint_last.pt")


def inspected(capsys, *arguments):
    assert main(["inspect", *arguments]) == 0
    return capsys.readouterr().out


# ---------------------------------------------------------------------- inspect
def test_json_has_it_all(checkpoint, capsys):
    found = json.loads(inspected(capsys, checkpoint, "--json"))
    weights = torch.load(checkpoint, weights_only=False)["model"]
    assert found["architecture"]["name"] == "synth_transformer"
    assert found["architecture"]["layers"] == {"encoder": 2, "decoder": 2}
    assert found["architecture"]["attention"]["decoder_self_attention"] == "random*1,dot_product*1"
    assert found["training"]["updates"] == 2 and found["training"]["seed"] == 7
    shapes = {p["name"]: p["shape"] for p in found["parameters"]}
    assert shapes["decoder.layers.0.self_attn.scorer.map"] == [2, 16, 16]
    assert all(list(weights[name].shape) == shape for name, shape in shapes.items())
    frozen = {p["name"] for p in found["parameters"] if not p["trainable"]}
    assert frozen == {n for n in shapes if ".fc1." in n or ".fc2." in n} and len(frozen) == 16
    assert found["frozen"]["seed"] is None and found["frozen"]["stored"] == "tensors"
    assert sorted(found["frozen"]["names"]) == sorted(frozen) and re.fullmatch(
        "[0-9a-f]{64}", found["frozen"]["digest"]
    )


def test_parameters_count_once(checkpoint, capsys):
    """The three embeddings are one tensor here; the sum is what fairseq counts."""
    found = json.loads(inspected(capsys, checkpoint, "--json"))
    model = open_checkpoint(checkpoint).model
    (tied,) = [p for p in found["parameters"] if p["also"]]
    assert tied["name"] == "encoder.embed_tokens.weight"
    assert set(tied["also"]) == {"decoder.embed_tokens.weight", "decoder.output_projection.weight"}
    assert sum(c["parameters"] for c in found["components"]) == sum(p.numel() for p in model.parameters())
    assert sum(c["trainable"] for c in found["components"]) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def test_spans_and_mixtures_are_those_of_the_weights(checkpoint, capsys):
    found = json.loads(inspected(capsys, checkpoint, "--json"))
    weights = torch.load(checkpoint, weights_only=False)["model"]
    assert [(s["side"], s["layer"], s["limit"]) for s in found["spans"]] == [("encoder", 0, 20), ("encoder", 1, 20)]
    for span in found["spans"]:
        ratio = weights[f"encoder.layers.{span['layer']}.self_attn.span.span_ratio"]
        assert span["tokens"] == pytest.approx((20 * ratio).tolist())
    assert len(found["mixtures"]) == 2
    for mixture in found["mixtures"]:
        logits = weights[f"encoder.layers.{mixture['layer']}.self_attn.scorer.mixture_logits"]
        assert list(mixture["weights"]) == ["random", "dot_product"]
        assert mixture["weights"]["dot_product"] == pytest.approx(torch.softmax(logits, 0)[1].tolist())


def test_text_is_narrow_and_plain(checkpoint, capsys):
    text = inspected(capsys, checkpoint)
    lines = text.splitlines()
    assert max(len(line) for line in lines if checkpoint[:20] not in line and "data" not in line) <= 80
    assert "\x1b" not in text
    (ffn,) = [line.split() for line in lines if line.startswith("  ffn ")]
    assert ffn[3:] == ["0", "0.0"]
    assert re.search(r"^  all +\d", text, re.M) and "spans of the encoder's self-attention, in tokens" in text
    assert "frozen: 16 tensors (--freeze ffn)" in text
    everything = inspected(capsys, checkpoint, "--all")
    assert re.search(r"^  encoder\.layers\.0\.fc1\.weight +24 x 16 +frozen$", everything, re.M)
    assert "= decoder.embed_tokens.weight" in everything


def test_a_seed_in_place_of_frozen_tensors(corpus, tmp_path, capsys):
    """Embeddings too: without them the file does not say how large the vocabulary is."""
    arguments = train_args(corpus, tmp_path, "--freeze", "embeddings", "--frozen-init", "7", "--store-frozen", "seed")
    call_command("train", *arguments)
    checkpoint = tmp_path / "checkpoint_last.pt"
    assert "encoder.embed_tokens.weight" not in torch.load(checkpoint, weights_only=False)["model"]
    found = json.loads(inspected(capsys, str(checkpoint), "--json"))
    assert found["frozen"]["seed"] == 7 and found["frozen"]["stored"].startswith("seed")
    (embeddings,) = [c for c in found["components"] if c["component"] == "embeddings"]
    assert embeddings["trainable"] == 0 and embeddings["parameters"] == 64 * 16
    text = inspected(capsys, str(checkpoint))
    assert re.search(r"^  seed +7$", text, re.M) and re.search(r"^  digest +[0-9a-f]{64}$", text, re.M)


def test_sixteen_heads_take_two_lines(capsys):
    from fairseq_synth.commands.inspect import _numbers

    lines = list(_numbers("layer 0", 10, [f"{n:9,.1f}" for n in range(16)]))
    assert len(lines) == 3 and max(map(len, lines)) <= 80
    assert [float(n) for n in " ".join(lines).replace("layer 0", "").split()] == list(range(16))


def test_all_with_json_is_refused(checkpoint, capsys):
    assert main(["inspect", checkpoint, "--json", "--all"]) == 2
    assert "--all: has no effect with --json" in capsys.readouterr().err


def test_looking_leaves_the_random_numbers_alone(checkpoint):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    open_checkpoint(checkpoint)
    assert torch.equal(torch.rand(1), expected)


# ---------------------------------------------------------------------- doctor
def test_doctor_tells_of_every_fix(capsys):
    main(["doctor"])
    text = capsys.readouterr().out
    plain = " ".join(text.split())
    for report in compat.describe():
        assert report.name in text
        if report.applied:
            assert " ".join(report.reason.split()) in plain
    assert torch.__version__ in text and f"{len(compat.APPLIED)} of {len(compat.FIXES)}" in text
    assert "\x1b" not in text
    long = [line for line in text.splitlines() if len(line) > 80]
    assert all("/" in line for line in long), "only paths may be longer"


def test_doctor_fails_where_something_does_not_work(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"^FAIL +commands +fairseq-train is not in PATH\n +fix: ", text, re.M)
    assert "1 will not work" in text


def test_another_environments_commands(monkeypatch, tmp_path):
    other = tmp_path / "fairseq-train"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = environment._commands()
    assert found.level == "FAIL" and "another environment" in found.text


def test_another_copy_in_the_current_folder(monkeypatch, tmp_path):
    (tmp_path / "fairseq_synth").mkdir()
    monkeypatch.chdir(tmp_path)
    (found,) = environment._user_dir()
    assert found.level == "FAIL" and str(tmp_path) in found.text
    (tmp_path / "fairseq_synth").rmdir()
    (found,) = environment._user_dir()
    assert found.level in ("ok", "note")


def test_fairseq_that_was_not_compiled(monkeypatch):
    monkeypatch.setitem(sys.modules, "fairseq.data.data_utils_fast", None)
    (found,) = environment._extensions()
    assert found.level == "FAIL" and "data_utils_fast" in found.text and "pip install" in found.fix


def test_what_is_missing(monkeypatch):
    real = environment.distribution
    monkeypatch.setattr(
        environment, "distribution", lambda name: (name, None if name == "sacrebleu" else real(name)[1])
    )
    (found,) = [f for f in environment._optional() if f.topic == "sacrebleu"]
    assert found.level == "note" and found.fix == "pip install sacrebleu" and "BLEU" in found.text


@pytest.mark.parametrize(
    "error, says",
    [
        (ModuleNotFoundError("No module named 'fairseq'", name="fairseq"), "fairseq is not installed in"),
        (ModuleNotFoundError("No module named 'hydra'", name="hydra"), "pip install hydra"),
        (OSError("libcudart.so.12: cannot open\nmore"), "cannot be imported (OSError: libcudart.so.12: cannot open)"),
    ],
)
def test_why_fairseq_cannot_be_imported(error, says):
    line = explain_import(error)
    assert says in line and "\n" not in line and "pip install" in line


# ---------------------------------------------------------------------- findings and scalars
def model(arch, *changes):
    """A tiny model without data."""
    from fairseq.data import Dictionary

    options = {"encoder_layers": 2, "decoder_layers": 2, "encoder_embed_dim": 8, "encoder_ffn_embed_dim": 8,
               "encoder_attention_heads": 2, "decoder_attention_heads": 2, **dict(changes)}  # fmt: skip
    task = Namespace(source_dictionary=Dictionary(), target_dictionary=Dictionary())
    return ARCH_MODEL_REGISTRY[arch].build_model(Namespace(**options), task)


@pytest.mark.parametrize("name", ["random", "fixed_random", "factorized_random"])
def test_maps_are_found(name):
    built = model("synth_transformer", ("encoder_self_attention", name), ("synthesizer_max_length", 12))
    found = [m for m in findings.maps(built) if m.place.side == "encoder"]
    assert [m.place.layer for m in found] == [0, 1] and all(m.scorer == name and not m.causal for m in found)
    assert all(m.logits.shape == (2, 12, 12) and m.trained == (name != "fixed_random") for m in found)
    scorer = built.encoder.layers[1].self_attn.scorer
    expected = scorer.left @ scorer.right.transpose(1, 2) if name == "factorized_random" else scorer.map
    torch.testing.assert_close(found[1].logits, expected.detach())
    assert all(m.causal for m in findings.maps(built) if m.place.side == "decoder")


def test_mixture_weights_are_logged_while_training():
    changes = [("decoder_self_attention", "random+dot_product")]
    built = model("synth_transformer", *changes)
    for mixture in (m for m in built.modules() if isinstance(m, Mixture)):
        mixture.mixture_logits.data[0] += 1.0
    with metrics.aggregate(new_root=True) as logged:
        training_log.log_learned(built.train())
    values = logged.get_smoothed_values()
    expected = {f"mixture_decoder_{i}_self_{name}" for i in (0, 1) for name in ("random", "dot_product")}
    assert set(values) == expected
    assert values["mixture_decoder_1_self_random"] == pytest.approx(0.731, abs=1e-3)
    copied = copy.deepcopy(built)  # as --ema-decay does: the copy tells of itself
    copied.decoder.layers[0].self_attn.scorer.mixture_logits.data[0] += 100
    with metrics.aggregate(new_root=True) as logged:
        training_log.log_learned(copied)
    assert logged.get_smoothed_values()["mixture_decoder_0_self_random"] == 1
    assert list(copied.state_dict()) == list(model("synth_transformer", *changes).state_dict())
    loss = torch.ones((), requires_grad=True)
    with metrics.aggregate(new_root=True) as logged:
        add_auxiliary_loss(built.eval(), loss, 3)
        with torch.no_grad():
            add_auxiliary_loss(built.train(), loss, 3)
    assert not logged.get_smoothed_values()
    with metrics.aggregate(new_root=True) as logged:
        add_auxiliary_loss(built.train(), loss, 3)
    assert set(logged.get_smoothed_values()) == expected


def test_trainable_share_is_logged_where_some_is_frozen():
    built = model("synth_transformer")
    with metrics.aggregate(new_root=True) as logged:
        training_log.log_learned(built.train())
    assert not logged.get_smoothed_values()
    built = model("synth_transformer")
    parameters = list(built.parameters())
    parameters[0].requires_grad_(False)
    with metrics.aggregate(new_root=True) as logged:
        training_log.log_learned(built.train())
    share = 100 * (1 - parameters[0].numel() / sum(p.numel() for p in parameters))
    assert logged.get_smoothed_values() == {"trainable_percent": pytest.approx(share, abs=0.01)}
