"""The commands of fairseq, end to end, with models of this plugin."""

import re
import subprocess
import sys

import pytest
import torch
from builders import half_layer_norm, hypotheses, last_number
from conftest import (
    ENVIRONMENT,
    REPOSITORY,
    TINY,
    USER_DIR,
    call_command,
    generate_args,
    run_command,
    train_args,
    write_corpus,
)
from fairseq import checkpoint_utils

from fairseq_synth.cli import main as synth_command

MIXED = ["--encoder-self-attention", "random,dense+dot_product", "--decoder-self-attention",
         "factorized_random+dot_product,factorized_dense"]  # fmt: skip
SHORT = ["--synthesizer-max-length", "32"]


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A model that has learned a little: (checkpoint, what training printed)."""
    folder = tmp_path_factory.mktemp("trained")
    printed = call_command("train", *train_args(corpus, folder, *MIXED, *SHORT, "--log-interval", "10", updates=60))
    return folder / "checkpoint_last.pt", printed


def test_train_validate_and_reload_agree(trained, corpus):
    checkpoint, printed = trained
    loss = last_number(r"valid on 'valid' subset.*? loss (?:=)?([\d.]+)", printed)
    again = call_command("validate", corpus, "--user-dir", USER_DIR, "--path", checkpoint, "--cpu", "--task",
                         "translation", "--max-tokens", "200")  # fmt: skip
    assert last_number(r" loss (?:=)?([\d.]+)", again) == pytest.approx(loss, abs=2e-3)


@pytest.mark.parametrize("batch", [1, 13])
def test_generate_scores_equal_teacher_forced_scores(trained, corpus, batch):
    checkpoint, _ = trained
    printed = call_command("generate", *generate_args(corpus, checkpoint, "--batch-size", batch, "--lenpen", "0"))
    lines = {i: line for i, line in re.findall(r"^P-(\d+)\t(.*)$", printed, re.MULTILINE)}
    assert len(lines) == 13, "every test sentence is translated"
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], {"data": str(corpus)})
    task.load_dataset("test")
    words = task.target_dictionary
    for i, (_, hypothesis) in hypotheses(printed).items():
        target = words.encode_line(hypothesis, add_if_not_exist=False).long()
        previous = torch.cat([target.new_tensor([words.eos()]), target[:-1]]).unsqueeze(0)
        source = task.datasets["test"][i]["source"].unsqueeze(0)
        with torch.no_grad():
            logits = models[0].eval()(source, source.ne(words.pad()).sum(1), previous)
            scores = models[0].get_normalized_probs(logits, log_probs=True)[0]
        forced = scores.gather(1, target.unsqueeze(1)).squeeze(1) / torch.log(torch.tensor(2.0))
        got = torch.tensor([float(v) for v in lines[str(i)].split()])
        assert torch.allclose(got, forced, atol=1e-3), (i, got, forced)


def test_interactive_says_what_generate_says(trained, corpus):
    checkpoint, _ = trained
    expected = hypotheses(call_command("generate", *generate_args(corpus, checkpoint, "--batch-size", 5)))
    sources = re.findall(r"^S-(\d+)\t(.*)$", call_command("generate", *generate_args(corpus, checkpoint)), re.M)
    sources.sort(key=lambda pair: int(pair[0]))
    command = [sys.executable, "-m", "fairseq_cli.interactive"]
    command += map(str, generate_args(corpus, checkpoint, "--buffer-size", 4, "--batch-size", 4))
    text = "\n".join(sentence for _, sentence in sources) + "\n"
    done = subprocess.run(command, input=text, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    got = hypotheses(done.stdout)
    assert len(got) == len(expected) == 13
    for i, (score, words) in expected.items():
        assert got[i][1] == words and got[i][0] == pytest.approx(score, abs=1e-3)


GENERATE_OPTIONS = {
    "alignment": ["--print-alignment"],
    "prefix": ["--prefix-size", "2"],
    "sampling": ["--sampling", "--beam", "1", "--seed", "1"],
    "left_padding_off": ["--left-pad-source"],
}


@pytest.mark.parametrize("name", sorted(GENERATE_OPTIONS))
def test_generate_options(name, trained, corpus):
    printed = call_command("generate", *generate_args(corpus, trained[0], *GENERATE_OPTIONS[name]))
    got = hypotheses(printed)
    assert len(got) == 13
    if name == "alignment":
        assert len(re.findall(r"^A-\d+\t(\d+-\d+ ?)+", printed, re.M)) == 13
    if name == "prefix":
        targets = dict(re.findall(r"^T-(\d+)\t(.*)$", printed, re.M))
        assert all(words.split()[:2] == targets[str(i)].split()[:2] for i, (_, words) in got.items())
    if name == "left_padding_off":  # fairseq's flag toggles: padding on the right must not change a hypothesis
        assert got == hypotheses(call_command("generate", *generate_args(corpus, trained[0])))


def test_replace_unk(trained, corpus, tmp_path):
    """fairseq does so from raw text only; an empty argument means: copy the aligned source word."""
    text = write_corpus(tmp_path / "text", {"test": 5})
    (text / "test.src").write_text("w1 w2 never w3\n" * 5)
    call_command("preprocess", "--source-lang", "src", "--target-lang", "tgt", "--testpref", text / "test",
                 "--destdir", tmp_path / "raw", "--dataset-impl", "raw", "--srcdict", corpus / "dict.src.txt",
                 "--joined-dictionary")  # fmt: skip
    arguments = generate_args(tmp_path / "raw", trained[0], "--replace-unk", "", "--dataset-impl", "raw")
    assert len(hypotheses(call_command("generate", *arguments))) == 5


def test_pruned_layers_by_model_overrides(trained, corpus):
    """fairseq's own default for this option cannot be overridden: it declares a list and splits a string."""
    overrides = "{'encoder_layers_to_keep': '1', 'decoder_layers_to_keep': '0'}"
    printed = call_command("generate", *generate_args(corpus, trained[0], "--model-overrides", overrides))
    assert len(hypotheses(printed)) == 13


def test_ensemble_and_average(trained, corpus, tmp_path):
    checkpoint, _ = trained
    ensemble = call_command("generate", *generate_args(corpus, f"{checkpoint}:{checkpoint}"))
    single = hypotheses(call_command("generate", *generate_args(corpus, checkpoint)))
    for i, (score, words) in hypotheses(ensemble).items():
        assert words == single[i][1] and score == pytest.approx(single[i][0], abs=1e-3)
    average = tmp_path / "average.pt"
    assert synth_command(["average", "--inputs", str(checkpoint), str(checkpoint), "--output", str(average)]) == 0
    assert hypotheses(call_command("generate", *generate_args(corpus, average))) == single


TRAIN_OPTIONS = {
    "update_freq": ["--update-freq", "2"],
    "layerdrop": ["--encoder-layerdrop", "0.5", "--decoder-layerdrop", "0.5"],
    "checkpoint_activations": ["--checkpoint-activations"],
    "layernorm_embedding": ["--layernorm-embedding"],
    "pre_norm": ["--encoder-normalize-before", "--decoder-normalize-before"],
    "left_pad_target": ["--left-pad-target"],
    "buckets": ["--num-batch-buckets", "2"],
    "bf16": ["--bf16"],
    "memory_efficient_fp16": ["--memory-efficient-fp16"],
    "label_smoothing": ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"],
    "ema": ["--store-ema", "--ema-decay", "0.9"],
    "quant_noise": ["--quant-noise-pq", "0.1", "--quant-noise-pq-block-size", "4"],
    "attention_dropout": ["--attention-dropout", "0.2", "--activation-dropout", "0.1"],
    "cross_attention": ["--cross-attention", "random+dot_product"],
    "adaptive_span": ["--encoder-adaptive-span", "16", "--decoder-adaptive-span", "8", "--span-ramp", "4"],
    "all_attention": ["--persistent-memory", "8"],
    "fixed": ["--encoder-self-attention", "fixed_random", "--synthesizer-init", "normal"],
}


@pytest.mark.parametrize("name", sorted(TRAIN_OPTIONS))
def test_train_options(name, corpus, tmp_path):
    """Two updates, save, resume for two more, translate."""
    if name == "memory_efficient_fp16" and not half_layer_norm():
        pytest.skip("this torch has no float16 layer norm on a CPU")
    options = [*MIXED, *SHORT, *TRAIN_OPTIONS[name]]
    for updates in (2, 4):
        printed = call_command("train", *train_args(corpus, tmp_path, *options, updates=updates))
        assert not re.search(r"loss (=)?nan", printed)
    assert "Loaded checkpoint" in printed and "num_updates 4" in printed.replace("=", " ")
    assert len(hypotheses(call_command("generate", *generate_args(corpus, tmp_path / "checkpoint_last.pt")))) == 13


def test_spans_and_memory_train(corpus, tmp_path):
    """Spans move and stay in range, their mean is logged; all-attention layers have no feed-forward."""
    arguments = [*SHORT, "--encoder-adaptive-span", "16", "--decoder-adaptive-span", "16", "--span-ramp", "4"]
    arguments += ["--persistent-memory", "8", "--span-loss", "1e-4", "--log-interval", "5"]
    printed = call_command("train", *train_args(corpus, tmp_path, *arguments, updates=20))
    weights = torch.load(tmp_path / "checkpoint_last.pt", weights_only=True)["model"]
    ratios = torch.stack([v for k, v in weights.items() if k.endswith("span.span_ratio")])
    assert ratios.shape == (4, 2) and ratios.min() >= 0 and ratios.max() <= 1 and ratios.max() > 0
    assert "span_mean" in printed and "span_max" in printed
    assert not [k for k in weights if ".fc1." in k or ".final_layer_norm." in k]


def test_checkpoint_activations_change_nothing(corpus, tmp_path):
    losses = []
    for extra in ([], ["--checkpoint-activations"]):
        folder = tmp_path / str(len(extra))
        printed = call_command("train", *train_args(corpus, folder, *MIXED, *SHORT, "--dropout", "0.1", *extra))
        losses.append(last_number(r"valid on 'valid' subset.*? loss (?:=)?([\d.]+)", printed))
    assert losses[0] == losses[1]


def test_finetune_from_model(trained, corpus, tmp_path):
    printed = call_command("train", *train_args(corpus, tmp_path, *MIXED, *SHORT, "--finetune-from-model", trained[0],
                                                "--lr", "1e-9", updates=1))  # fmt: skip
    loss = last_number(r"valid on 'valid' subset.*? loss (?:=)?([\d.]+)", printed)
    before = last_number(r"valid on 'valid' subset.*? loss (?:=)?([\d.]+)", trained[1])
    assert loss == pytest.approx(before, abs=1e-3)


def test_hydra_train_takes_the_same_options_and_refuses_a_typo(corpus, tmp_path):
    common = ["--config-dir", REPOSITORY / "examples" / "translation", "--config-name", "synth_transformer",
              f"task.data={corpus}", f"common.user_dir={USER_DIR}", f"checkpoint.save_dir={tmp_path}/c",
              "common.cpu=true", f"hydra.run.dir={tmp_path}", "optimization.max_update=1", "task.source_lang=src",
              "task.target_lang=tgt", "dataset.max_tokens=200", "model.synthesizer_max_length=24"]  # fmt: skip
    run_command("hydra_train", *common)
    state = torch.load(tmp_path / "c" / "checkpoint_last.pt", weights_only=True)
    model = state["cfg"]["model"]
    assert model["encoder_self_attention"] == "random+dot_product" and model["encoder_embed_dim"] == 128
    assert state["model"]["encoder.layers.3.self_attn.scorer.scorers.0.map"].shape == (4, 24, 24)
    wrong = run_command("hydra_train", *common, "+model.encoder_self_atention=dense", check=False)
    assert wrong.returncode != 0 and "encoder_self_atention" in wrong.stderr


def test_a_checkpoint_opens_without_the_plugin(trained):
    code = f"import torch; s = torch.load({str(trained[0])!r}, weights_only=True); print(s['cfg']['model']['_name'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.stdout.strip() == "synth_transformer", done.stderr


def test_importing_twice_is_harmless(trained, corpus):
    """As a library, then by --user-dir, then again: in one process."""
    args = [str(a) for a in generate_args(corpus, trained[0])]
    code = f"import sys; sys.argv[1:] = {args!r}; import fairseq_synth, importlib; "
    code += "importlib.import_module('fairseq_synth'); from fairseq_cli import generate; generate.cli_main()"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0 and len(hypotheses(done.stdout)) == 13, done.stderr[-2000:]


def test_old_options_of_a_checkpoint_are_completed(trained, corpus, tmp_path):
    """A checkpoint written before an option existed loads with its default."""
    state = torch.load(trained[0], weights_only=True)
    del state["cfg"]["model"]["synthesizer_map_seed"], state["cfg"]["model"]["cross_attention"]
    torch.save(state, tmp_path / "old.pt")
    assert len(hypotheses(call_command("generate", *generate_args(corpus, tmp_path / "old.pt")))) == 13


def test_a_reversal_is_learned(corpus, tmp_path):
    """The target is the source backwards with other words: needs positions, order and cross-attention."""
    sizes = [a.replace("16", "64").replace("24", "128") for a in TINY]
    printed = call_command("train", corpus, "--user-dir", USER_DIR, "--arch", "synth_transformer", *sizes, *SHORT,
                           "--encoder-self-attention", "random", "--decoder-self-attention", "random+dot_product",
                           "--share-all-embeddings", "--optimizer", "adam", "--lr", "0.003", "--dropout", "0",
                           "--max-tokens", "800", "--max-update", "200", "--cpu", "--no-progress-bar", "--no-save",
                           "--num-workers", "0", "--save-dir", tmp_path)  # fmt: skip
    losses = [float(x) for x in re.findall(r"^epoch \d+ \| loss ([\d.]+)", printed, re.M)]
    assert losses[-1] < 0.3 * losses[0], losses
