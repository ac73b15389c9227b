"""Sequential language models through the real commands: streams, memory, span loss, generation, parameter counts."""

import random
import re
import shutil
from argparse import Namespace

import pytest
import torch
from conftest import USER_DIR, call_command
from fairseq import checkpoint_utils
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.data import Dictionary

from fairseq_synth.auxiliary_loss import PATIENCE, AuxiliaryLossMixin
from fairseq_synth.errors import UsageError, explain
from fairseq_synth.models.presets import with_defaults
from fairseq_synth.models.sequential_decoder import SequentialDecoder
from fairseq_synth.models.sequential_lm import PRESETS, SequentialLMBase, SequentialLMConfig
from fairseq_synth.modules.adaptive_span import adaptive_spans
from fairseq_synth.modules.stream_memory import StreamMemory
from fairseq_synth.optim.adagrad_tensor_clip import AdagradTensorClip
from fairseq_synth.tasks.streaming_lm import Streams, StreamText

SMALL = {"layers": 2, "embed_dim": 16, "ffn_embed_dim": 24, "attention_heads": 2, "attention_span": 40,
         "span_ramp": 4, "dropout": 0.0}  # fmt: skip
MODEL = [a for k, v in SMALL.items() for a in (f"--{k.replace('_', '-')}", str(v))]


def dictionary(size=20):
    d = Dictionary()
    for i in range(size - len(d)):
        d.add_symbol(f"w{i}")
    return d


def build(**changes):
    """A small model in float64 and evaluation mode whose heads look back 2, 5, ... tokens."""
    torch.manual_seed(0)
    cfg = with_defaults("TestConfig", SequentialLMConfig, {**SMALL, **changes})()
    model = SequentialLMBase.build_model(cfg, Namespace(target_dictionary=dictionary())).double().eval()
    for i, span in enumerate(adaptive_spans(model)):
        span.span_ratio.data = torch.tensor([0.05, 0.125], dtype=torch.double) * (i + 1)
    return model


def sentence(steps=30, batch=2, seed=3):
    return torch.randint(4, 20, (batch, steps), generator=torch.Generator().manual_seed(seed))


def log_probs(model, tokens, **kwargs):
    return model.get_normalized_probs(model(tokens, **kwargs), log_probs=True)


VARIANTS = [{}, {"persistent_memory": 3}, {"persistent_memory": 3, "keep_feed_forward": True}]


# ------------------------------------------------------------------------------------------- the model
@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("block", [1, 4, 7])
def test_a_stream_in_blocks_equals_the_whole(changes, block):
    model, tokens, memory = build(**changes), sentence(), StreamMemory()
    blocks = [log_probs(model, part, memory=memory) for part in tokens.split(block, dim=1)]
    torch.testing.assert_close(torch.cat(blocks, dim=1), log_probs(model, tokens))
    again = [log_probs(model, part, memory=StreamMemory()) for part in tokens.split(block, dim=1)]
    assert not torch.allclose(torch.cat(again, dim=1), torch.cat(blocks, dim=1))  # the memory is what did it


@pytest.mark.parametrize("changes", VARIANTS)
def test_blocks_of_64_and_512_give_the_loss_of_one_block(changes):
    """1,300 tokens, heads of 70 to 360: the memory covers every span."""
    model, tokens = build(**{**changes, "attention_span": 1400, "span_ramp": 32}), sentence(1300, batch=1)
    whole = log_probs(model, tokens).gather(2, tokens[..., None]).mean()
    for block in (64, 512):
        memory = StreamMemory()
        parts = torch.cat([log_probs(model, part, memory=memory) for part in tokens.split(block, dim=1)], dim=1)
        torch.testing.assert_close(parts.gather(2, tokens[..., None]).mean(), whole)


def test_memory_is_bounded_and_belongs_to_the_caller():
    model, tokens, memory = build(), sentence(200), StreamMemory()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for part in tokens.split(8, dim=1):
        model(part, memory=memory)
    sizes = [state.size(0) for state in memory.read(model.decoder._incremental_state_id).states]
    assert sizes == [40, 40]  # S: less than the reach and its slack
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    model(sentence(5, batch=3), memory=StreamMemory())  # another pass, another batch size
    with pytest.raises(UsageError, match="3 streams follows one of 2"):
        model(sentence(5, batch=3), memory=memory)


@pytest.mark.parametrize("changes", VARIANTS)
def test_cached_decoding_equals_the_full_pass(changes):
    model, tokens = build(**changes), sentence()
    state, steps = {}, []
    for end in (1, 2, 4, 7, 8, 15, 30):  # all tokens so far, as fairseq's generator gives them
        steps.append(model.decoder(tokens[:, :end], incremental_state=state)[0])
    torch.testing.assert_close(torch.cat(steps, dim=1), model(tokens)[0])


def test_reordered_decoding_state_follows_its_sentence():
    model, tokens, state = build(), sentence(batch=3), {}
    model.decoder(tokens[:, :-1], incremental_state=state)
    order = torch.tensor([2, 0])
    model.decoder.reorder_incremental_state_scripting(state, order)
    last = model.decoder(tokens[order], incremental_state=state)[0]
    torch.testing.assert_close(last, model(tokens[order])[0][:, -1:])


@pytest.mark.parametrize("changes", VARIANTS)
def test_padding_on_either_side_and_across_blocks(changes):
    model, tokens = build(**changes), sentence()
    pad = model.decoder.padding_idx
    left, right = (torch.full((1, 5), pad), tokens[:1, 5:]), (tokens[1:, :-5], torch.full((1, 5), pad))
    batch = torch.cat([torch.cat(left, dim=1), torch.cat(right, dim=1)])
    memory = StreamMemory()
    blocks = torch.cat([model(part, memory=memory)[0] for part in batch.split(7, dim=1)], dim=1)
    for y in (model(batch)[0], blocks):
        torch.testing.assert_close(y[:1, 5:], model(left[1])[0])
        torch.testing.assert_close(y[1:, :-5], model(right[0])[0])


def test_a_token_sees_only_what_is_before_it():
    model, tokens = build(), sentence(batch=1)
    other = tokens.clone()
    other[0, 12] = 4 if other[0, 12] != 4 else 5
    changed = (model(other)[0] - model(tokens)[0]).abs().amax(-1)[0] > 1e-12
    assert not changed[:12].any() and changed[12:16].all()


@pytest.mark.parametrize(
    "name, vocabulary, millions",
    [
        ("adaptive_span_lm_enwik8", 205, 38.5),
        ("adaptive_span_lm_enwik8_large", 205, 208.9),
        ("adaptive_span_lm_text8", 27, 38.4),
        ("all_attention_lm_enwik8_small", 205, 38.5),
        ("all_attention_lm_enwik8", 205, 114.0),
        ("all_attention_lm_wiki103", 267_735, 132.2),  # printed as 133M; tied projections make the difference
    ],
)
def test_parameter_counts_are_the_published_ones(name, vocabulary, millions):
    words = Dictionary()
    words.symbols += [""] * (vocabulary - len(words))
    with torch.device("meta"):  # sizes only
        decoder = SequentialDecoder(with_defaults("Test", SequentialLMConfig, PRESETS[name])(), words)
    count = sum(p.numel() for p in decoder.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.05)


def test_presets_have_the_published_spans():
    small = with_defaults("Test", SequentialLMConfig, PRESETS["adaptive_span_lm_enwik8_small"])()
    assert (small.layers, small.embed_dim, small.attention_heads, small.attention_span) == (8, 256, 4, 1024)
    assert {with_defaults("Test", SequentialLMConfig, p)().attention_span for p in PRESETS.values()} == {
        8192,
        1024,
        2048,
    }


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"ffn_embed_dim": 0}, "--ffn-embed-dim 0 with --persistent-memory 0"),
        ({"persistent_memory": -1}, "--persistent-memory -1"),
        ({"keep_feed_forward": True}, "--keep-feed-forward"),
        ({"initial_span": 41.0}, "--initial-span 41"),
        ({"attention_heads": 3}, "--attention-heads 3"),
        ({"adaptive_cutoff": "5,100"}, "--adaptive-cutoff 5,100"),
    ],
)
def test_options_that_cannot_work_are_named(changes, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        build(**changes)


def test_a_block_longer_than_the_positions_is_refused():
    with pytest.raises(UsageError, match="a block of 41 tokens is longer than the 40 positions of --attention-span"):
        build()(sentence(41))


# ------------------------------------------------------------------------------------------- span loss and optimizer
def criterion(name, sentence_avg=False, **options):
    """fairseq's, as its commands build it. (adaptive_loss asks the adaptive softmax, not the model.)"""
    task = Namespace(source_dictionary=dictionary(), target_dictionary=dictionary())
    return CRITERION_REGISTRY[name](task, sentence_avg, *options.values())


CRITERIONS = [
    ("cross_entropy", {}, {}),
    ("cross_entropy", {"sentence_avg": True}, {}),
    ("label_smoothed_cross_entropy", {"label_smoothing": 0.1}, {}),
    ("chunked_cross_entropy", {}, {}),
    ("chunked_label_smoothed_cross_entropy", {"label_smoothing": 0.1}, {}),
    ("adaptive_loss", {}, {"adaptive_cutoff": "8,14"}),
]


@pytest.mark.parametrize("name, options, changes", CRITERIONS)
def test_the_span_loss_joins_every_criterion(name, options, changes):
    """Its gradient is that of sample_size * weight * mean span, whatever the criterion asks of the model."""
    model, loss_of = build(**changes).train(), criterion(name, **options)
    tokens, target = sentence()[:, :-1], sentence()[:, 1:].clone()
    target[0, -4:] = model.decoder.padding_idx
    sample = {"net_input": {"src_tokens": tokens}, "target": target, "ntokens": target.numel() - 4, "nsentences": 2}
    gradients, logged = [], []
    for weight in (0.0, 1e-3):
        model.zero_grad()
        model.span_loss_weight = weight
        loss, sample_size, logging_output = loss_of(model, sample)
        (loss * 16).backward()
        gradients.append(torch.stack([s.span_ratio.grad for s in adaptive_spans(model)]))
        logged.append(float(logging_output["loss"]))
    assert sample_size == (2 if options.get("sentence_avg") else target.numel() - 4) and logged[0] == logged[1]
    expected = torch.full((2, 2), 16 * sample_size * 1e-3 * 40 / 2, dtype=torch.double)  # weight * S / heads
    torch.testing.assert_close(gradients[1] - gradients[0], expected, rtol=1e-4, atol=0)


def test_no_span_loss_in_evaluation_and_for_single_losses():
    model, loss_of = build(span_loss=1e3).train(), criterion("cross_entropy")
    tokens = sentence()
    sample = {
        "net_input": {"src_tokens": tokens[:, :-1]},
        "target": tokens[:, 1:].contiguous(),
        "ntokens": 5,
        "nsentences": 1,
    }
    assert float(loss_of(model, sample)[0].detach()) > 1e3
    for loss in (loss_of(model, sample, reduce=False)[0], loss_of(model.eval(), sample)[0]):
        assert float(loss.detach().max()) < 1e3


def test_spans_that_never_move_are_reported(caplog):
    model = build().train()
    assert isinstance(model, AuxiliaryLossMixin)
    with caplog.at_level("WARNING"):
        for update in range(PATIENCE + 3):
            model.set_num_updates(update)
        assert caplog.text.count("no adaptive span has moved") == 1
        caplog.clear()
        other = build().train()
        for update in range(PATIENCE + 3):
            adaptive_spans(other)[0].span_ratio.data += 1e-6
            other.set_num_updates(update)
        assert not caplog.text


def test_optimizer_limits_each_tensors_step():
    p, q = (torch.nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = AdagradTensorClip([p, q], lr=0.1, clip=0.5)
    for gradient in ([3.0, 4.0], [0.0, 1.0]):
        p.grad, q.grad = torch.tensor(gradient), torch.tensor([0.1, 0.2])
        optimizer.step()
    # p: norms 5 and 1 -> lr / 10 and lr / 2; squares accumulate unclipped; q is below the limit
    expected = -0.01 * torch.tensor([1.0, 1.0]) - 0.05 * torch.tensor([0.0, 1 / 17**0.5])
    torch.testing.assert_close(p.data, expected)
    torch.testing.assert_close(q.data, torch.full((2,), -0.1 - 0.1 / 2**0.5))


# ------------------------------------------------------------------------------------------- streams
def text(count):
    lines = [torch.arange(4, 4 + count)]
    lines = type("Lines", (list,), {"sizes": [count]})(lines)
    return StreamText(lines, dictionary())


@pytest.mark.parametrize("count, rows, workers, block", [(23, 3, 1, 4), (23, 2, 2, 5), (24, 4, 1, 6), (7, 1, 1, 100)])
def test_every_token_is_predicted_once_from_the_one_before(count, rows, workers, block):
    predicted = []
    for worker in range(workers):
        streams = Streams(text(count), rows, workers, worker, block)
        for batch in (streams[k] for k in range(len(streams))):
            source, target = batch["net_input"]["src_tokens"], batch["target"]
            assert source.shape == target.shape and source.size(0) == rows and source.size(1) <= block
            real = target != 1
            assert batch["ntokens"] == real.sum()
            before = torch.where(target == 4, torch.tensor(2), target - 1)  # the text begins after an eos
            assert torch.equal(source[real], before[real]) and (source[~real] == 1).all()
            predicted += target[real].tolist()
    assert sorted(predicted) == list(range(4, 4 + count))


def test_more_streams_than_text_is_refused():
    with pytest.raises(UsageError, match="--batch-size 30"):
        Streams(text(23), 30, 1, 0, 4)


# ------------------------------------------------------------------------------------------- the real commands
@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Characters of a text that repeats itself: the model must look back to predict it."""
    root, rng = tmp_path_factory.mktemp("stream"), random.Random(1)
    for split, lines in (("train", 150), ("valid", 23)):
        with open(root / split, "w") as out:
            for _ in range(lines):
                word = [rng.choice("abcdefgh") for _ in range(rng.randint(2, 5))]
                print(*word, *word, file=out)
    call_command("preprocess", "--only-source", "--trainpref", root / "train", "--validpref", root / "valid",
                 "--destdir", root / "bin")  # fmt: skip
    return root / "bin"


def train(data, save_dir, *extra, arch="adaptive_span_lm", updates=40):
    return call_command(
        "train", data, "--user-dir", USER_DIR, "--task", "streaming_lm", "--tokens-per-sample", "16", "--arch", arch,
        *MODEL, "--optimizer", "adagrad_tensor_clip", "--lr", "0.07", "--lr-scheduler", "fixed", "--batch-size", "6",
        "--batch-size-valid", "2", "--max-update", str(updates), "--save-dir", save_dir, "--cpu", "--log-interval",
        "5", "--no-progress-bar", "--no-epoch-checkpoints", *extra,
    )  # fmt: skip


def eval_lm(data, save_dir, *extra, block=16, batch=2):
    log = call_command(
        "eval_lm", data, "--user-dir", USER_DIR, "--task", "streaming_lm", "--path", save_dir / "checkpoint_last.pt",
        "--gen-subset", "valid", "--cpu", "--tokens-per-sample", str(block), "--batch-size", str(batch),
        "--no-progress-bar", *extra,
    )  # fmt: skip
    return float(re.search(r"Loss \(base 2\): ([\d.]+)", log)[1])


@pytest.fixture(scope="module", params=["adaptive_span_lm", "all_attention_lm_enwik8_small"])
def trained(request, data, tmp_path_factory):
    save_dir = tmp_path_factory.mktemp("checkpoints")
    extra = ["--persistent-memory", "8"] if request.param.startswith("all") else []
    return save_dir, train(data, save_dir, *extra, arch=request.param)


def test_training_learns_and_logs_its_spans(trained):
    log = trained[1]
    losses = [float(n) for n in re.findall(r" \d+ loss=([\d.]+)", log)]
    assert losses[-1] < losses[0] - 0.3, losses
    last = log.rindex(" loss=")
    for key in ("span_mean", "span_max", "span_layer_0", "span_layer_1", "span_loss"):
        assert re.search(rf"\b{key}=[\d.e-]+", log[last:]), key
    assert float(re.search(r"span_max=([\d.]+)", log[last:])[1]) > 1


def test_evaluation_repeats_itself_and_ignores_the_cut(trained, data):
    save_dir, log = trained
    valid = float(re.findall(r"valid on 'valid' subset \| loss ([\d.]+)", log)[-1])
    losses = [eval_lm(data, save_dir, block=block) for block in (16, 16, 5, 40)]
    assert losses == pytest.approx([losses[0]] * 4, abs=1e-4)
    assert losses[0] == pytest.approx(valid, abs=2e-3)
    assert eval_lm(data, save_dir, batch=1) == pytest.approx(valid, abs=0.1)


def test_checkpoint_is_plain_and_its_spans_are_inside(trained):
    path = str(trained[0] / "checkpoint_last.pt")
    state = torch.load(path, weights_only=False)
    assert type(state["cfg"]["model"]).__name__ != "Namespace"
    models, _ = checkpoint_utils.load_model_ensemble([path])
    assert all(0 <= r <= 1 for s in adaptive_spans(models[0]) for r in (s.spans() / s.max_span).tolist())


def test_training_resumes(data, tmp_path):
    """In the middle of an epoch, with the optimizer's state: the first loss afterwards is not that of a new model."""
    before = train(data, tmp_path, updates=30)
    after = train(data, tmp_path, "--log-interval", "1", updates=32)
    assert "Loaded checkpoint" in after and "num_updates=31" in after
    first, resumed = (float(re.findall(r" \d+ loss=([\d.]+)", log)[0]) for log in (before, after))
    assert resumed < first - 0.3


def test_generation_from_prompts_scores_as_the_full_pass(trained, data, tmp_path):
    prompts = tmp_path / "prompts"
    prompts.write_text("a b c\nd\ne f g h a\n")
    log = call_command(
        "interactive", data, "--user-dir", USER_DIR, "--task", "language_modeling", "--path",
        trained[0] / "checkpoint_last.pt", "--cpu", "--beam", "3", "--max-len-b", "35", "--input", prompts,
        "--buffer-size", "3", "--batch-size", "3", "--unnormalized",
    )  # fmt: skip
    hypotheses = re.findall(r"^H-\d+\t(\S+)\t(.*)$", log, re.MULTILINE)
    assert len(hypotheses) == 3
    models, _ = checkpoint_utils.load_model_ensemble([str(trained[0] / "checkpoint_last.pt")])
    model, words = models[0].eval(), Dictionary.load(str(data / "dict.txt"))
    for score, line in hypotheses:
        tokens = words.encode_line(line, append_eos=True, add_if_not_exist=False).long()[None]
        source = torch.cat([tokens.new_full((1, 1), words.eos()), tokens[:, :-1]], dim=1)
        full = log_probs(model, source).gather(2, tokens[..., None]).sum() / torch.tensor(2.0).log()
        assert float(score) == pytest.approx(full.item(), abs=2e-3)


@pytest.mark.parametrize("change", ["order", "size"])
def test_another_dictionary_is_refused(trained, data, tmp_path, change):
    """One of equal size would fit, and silently give nonsense."""
    shutil.copytree(data, tmp_path / "other")
    words = (tmp_path / "other" / "dict.txt").read_text().splitlines()
    words = words[1:] + words[:1] if change == "order" else [*words, "new 1"]
    (tmp_path / "other" / "dict.txt").write_text("\n".join(words) + "\n")
    with pytest.raises(Exception) as caught:
        eval_lm(tmp_path / "other", trained[0])
    line = explain(caught.value)
    assert re.match(
        r"the dictionary \(dict.txt\) of 1\d symbols is not the one the checkpoint was trained with: give", line
    ), line


def test_options_without_effect_are_refused(data, tmp_path):
    for option, message in (
        (["--sample-break-mode", "eos"], "--sample-break-mode eos"),
        (["--tokens-per-sample", "100"], "a block of 100 tokens"),
        (["--batch-size", "100000"], "--batch-size 100000"),
    ):
        with pytest.raises(UsageError, match=message):
            train(data, tmp_path, *option, updates=1)
