"""The places of fairseq's training where others may step in (compat/training_seams.py)."""

import contextlib
import re
from argparse import Namespace

import pytest
import torch
from builders import SHORT, SMALL, build, task
from conftest import call_command, train_args
from fairseq.criterions import CRITERION_REGISTRY, FairseqCriterion
from fairseq.criterions.cross_entropy import CrossEntropyCriterion
from fairseq.models.ema.ema import EMA
from fairseq.trainer import Trainer

from fairseq_synth.checks.case import tokens
from fairseq_synth.compat import training_seams
from fairseq_synth.freezing.model import bare_state


@pytest.fixture
def after_loss(monkeypatch):
    """An empty list in the place of that seam."""
    seam = []
    monkeypatch.setattr(training_seams, "AFTER_LOSS", seam)
    return seam


def batch():
    source, target = tokens((5, 4, 2)), tokens((4, 3, 2), seed=9)
    net_input = {"src_tokens": source, "src_lengths": source.ne(1).sum(1), "prev_output_tokens": target}
    return {"net_input": net_input, "target": target, "ntokens": 9, "nsentences": 3}


def small():
    return build(**SMALL, **SHORT, encoder_layers=1, decoder_layers=1)


# ---------------------------------------------------------------------- after the loss
def test_a_term_joins_the_loss_and_nothing_else(after_loss):
    model, criterion = small().eval(), CrossEntropyCriterion(task(), sentence_avg=False)
    loss, sample_size, logged = criterion(model, batch())
    seen = []

    def double(model, loss, sample_size):
        seen.append((model, sample_size))
        return loss + 2 * sample_size

    after_loss += [double, lambda model, loss, sample_size: loss * 10]
    changed = criterion(model, batch())
    assert seen == [(model, 9)] and changed[1:] == (sample_size, logged)
    assert torch.equal(changed[0], (loss + 18) * 10), "in the order of registration"
    assert torch.equal(criterion(sample=batch(), model=model)[0], changed[0])
    changed[0].backward()
    assert model.decoder.layers[0].fc1.weight.grad.abs().sum() > 0


def test_without_anybody_the_output_is_the_criterions_own(after_loss):
    class Same(FairseqCriterion):
        def forward(self, model, sample, reduce=True):
            return self.output

    criterion = Same(Namespace())
    criterion.output = (torch.ones(()), 1, {})
    assert criterion(None, None) is criterion.output


@pytest.mark.parametrize("output", [torch.ones(()), (torch.ones(()), 1), [torch.ones(()), 1, {}], (1.0, 1, {}),
                                    (torch.ones(2), 1, {}), None])  # fmt: skip
def test_other_outputs_pass_through_untouched(output, after_loss):
    class Other(FairseqCriterion):
        def forward(self, model, sample, reduce=True):
            return output

    after_loss.append(lambda model, loss, sample_size: pytest.fail("called"))
    assert Other(Namespace())(None, None) is output


@pytest.mark.parametrize("how", [{"reduce": False}, (False,)])
def test_losses_of_single_tokens_pass_through(how, after_loss):
    """Even where there is only one."""
    model, criterion = small(), CrossEntropyCriterion(task(), sentence_avg=False)
    after_loss.append(lambda model, loss, sample_size: pytest.fail("called"))
    for sample in (batch(), {**batch(), "target": batch()["target"][:1, :1]}):
        sample["net_input"] = {name: t[: len(sample["target"])] for name, t in sample["net_input"].items()}
        sample["net_input"]["prev_output_tokens"] = sample["target"]
        arguments = (model, sample) + (how if isinstance(how, tuple) else ())
        loss = criterion(*arguments, **(how if isinstance(how, dict) else {}))[0]
        assert loss.numel() == sample["target"].numel()


def test_every_criterion_has_the_hook_once():
    """Whatever its __init__ is."""
    words = Namespace(target_dictionary=task().target_dictionary, source_dictionary=task().target_dictionary)
    options = Namespace(sentence_avg=False, label_smoothing=0.1, tpu=False, ddp_backend="no_c10d")
    built = {}
    for name, cls in CRITERION_REGISTRY.items():
        with contextlib.suppress(Exception):  # others need options, or a task of their own
            built[name] = cls.build_criterion(options, words)
    assert {"cross_entropy", "label_smoothed_cross_entropy", "adaptive_loss", "masked_lm"} <= set(built)
    for name, criterion in built.items():
        assert list(criterion._forward_hooks.values()).count(training_seams._pass_loss_on) == 1, name


def test_the_term_is_trained_on_and_not_logged(corpus, tmp_path, after_loss):
    """Through fairseq-train."""

    def train(folder):
        printed = call_command("train", *train_args(corpus, tmp_path / folder, updates=1))
        weights = torch.load(tmp_path / folder / "checkpoint_last.pt")["model"]
        return re.search(r"epoch 001 \| loss ([\d.]+)", printed).group(1), weights["decoder.layers.0.fc1.weight"]

    loss, weight = train("without")
    after_loss.append(lambda model, loss, sample_size: loss * 0 if model.training else loss)
    same_loss, other_weight = train("nothing to learn")
    assert loss == same_loss and not torch.equal(weight, other_weight)


# ---------------------------------------------------------------------- around loading and averaging
def test_around_loading(corpus, tmp_path, monkeypatch):
    calls = []

    @contextlib.contextmanager
    def watch(trainer, filename, reset_optimizer):
        calls.append((type(trainer), filename, reset_optimizer))
        yield
        calls.append(trainer.get_num_updates())

    call_command("train", *train_args(corpus, tmp_path, updates=1))
    monkeypatch.setattr(training_seams, "AROUND_LOADING", [watch])
    call_command("train", *train_args(corpus, tmp_path, updates=2))
    assert calls == [(Trainer, str(tmp_path / "checkpoint_last.pt"), False), 1]


def test_around_averages(monkeypatch):
    calls = []

    def watch(name):
        @contextlib.contextmanager
        def around(*args):
            calls.append((name, args))
            yield
            calls.append(f"end of {name}")

        return [around]

    monkeypatch.setattr(training_seams, "AROUND_AVERAGE_STEP", watch("step"))
    monkeypatch.setattr(training_seams, "AROUND_AVERAGE_COPY", watch("copy"))
    model = torch.nn.Linear(2, 1)
    config = Namespace(ema_decay=0.5, ema_fp32=True, ema_seed_model=None, ema_update_freq=1, ema_start_update=0)
    average = EMA(model, config)
    assert calls == [("copy", (average,)), "end of copy"]
    average.step(model)
    assert calls[2:] == [("step", (average, model)), "end of step"]


# ---------------------------------------------------------------------- what freezing does there
def test_tensors_only_concerns_the_models_named():
    one, other = (build(**SMALL, **SHORT, freeze="ffn") for _ in range(2))
    with bare_state(one, None, torch.nn.Linear(1, 1)):
        assert "frozen_record" not in one.state_dict() and "frozen_record" in other.state_dict()
        with bare_state(one):
            pass
        assert "frozen_record" not in one.state_dict()
    assert "frozen_record" in one.state_dict()
