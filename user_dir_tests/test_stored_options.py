"""Options are literals: the same values as eval gives, and nothing that runs."""

import ast
import os
import sys
from argparse import Namespace

import fairseq
import pytest
import torch
from fairseq import checkpoint_utils, utils
from fairseq.logging.meters import MetersDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fairseq_synth.compat import stored_options
from fairseq_synth.compat.literals import literal
from fairseq_synth.errors import UsageError

# what options of fairseq's models, optimizers and examples look like
LEGAL = [
    "0.1", "1e-3,1e-4", "[0.25, 0.5]", "(0.9, 0.999)", "-1", "+2", "True", "None", "'text'", "''", "{'a': 1, 'b': [2]}",
    "[(512, 3)] * 20", "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]", "3 * [1]", "1/3", "2**-3",
    "10 ** 5", "5 // 2", "7 % 4", "(1e-30, 1e-3)", "[True] * 3", "{1, 2}", " 20000, 60000 ", "()", "[]", "1_000",
    "((0.1, 3, 4), (0.4, 5, 6))", "0x10", "1 - 0.5", "[1] * 0", "[1] * -1",
]  # fmt: skip
CODE = [
    "__import__('os').getcwd()", "open('x', 'w')", "[].append(1)", "(lambda: 1)()", "print", "[x for x in (1, 2)]",
    "f'{1}'", "().__class__", "x", "1 if 1 else 2", "1 and 2", "'a' * 3", "[1][0]", "(x := 1)", "import os", "1; 2",
    "[1] * 10**9", "9**9**9", "2 ** 10**9", "[" * 150 + "]" * 150 + "x", "-" * 3000 + "1", "1" * 5000, "(" * 3000, "\0",
    "", "1 << 9", "{**{}}", "[*[1]]", "1 < 2", "...[0]", "1/0", "[[0] * 9999] * 99999", "\u202e1\n2 x",
    "1e400 // 1 % 0",
]  # fmt: skip


@pytest.mark.parametrize("text", LEGAL)
def test_legal_values_are_what_eval_gives(text):
    expected = eval(text.strip())
    assert literal(text) == expected and type(literal(text)) is type(expected)


@pytest.mark.parametrize("text", CODE)
def test_code_is_refused_in_one_line(text):
    with pytest.raises(UsageError, match="code is not run") as error:
        literal(text)
    assert str(error.value).isprintable()


@settings(max_examples=200, deadline=None)
@given(st.recursive(
    st.one_of(st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8),
              st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.tuples(inner, inner),
                            st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=12,
))  # fmt: skip
def test_every_value_that_can_be_written_is_read(value):
    assert literal(repr(value)) == value


def test_what_is_no_text_is_refused_as_eval_refuses_it():
    with pytest.raises(TypeError):
        literal(1)
    assert utils.eval_bool(None, True) is True and utils.eval_bool(1, True) is True and utils.eval_bool("0") is False


@pytest.mark.parametrize("function", ["eval_str_list", "eval_str_dict"])
def test_functions_that_were_imported_by_name_are_safe_too(function):
    from fairseq import options

    for module in (utils, options):
        with pytest.raises(UsageError):
            getattr(module, function)("print('run')")
    assert options.eval_str_list("1e-3,2e-3") == [1e-3, 2e-3] and utils.eval_str_list("3", type=int) == [3]
    assert options.eval_str_dict("{'a': 1}") == {"a": 1}


def calls_eval(tree):
    return any(isinstance(n, ast.Call) and getattr(n.func, "id", "") in ("eval", "exec") for n in ast.walk(tree))


def test_no_module_of_fairseq_is_left_out():
    """Those that call eval are loaded with fairseq; its examples are not a part of it."""
    root = os.path.dirname(fairseq.__file__)
    found = []
    for folder, _, files in os.walk(root):
        for path in (os.path.join(folder, name) for name in files if name.endswith(".py")):
            inside = os.path.relpath(path, root).split(os.sep)
            with open(path, encoding="utf-8") as file:
                if inside[0] != "examples" and calls_eval(ast.parse(file.read())):
                    found.append(".".join(["fairseq", *inside])[:-3])
    assert len(found) > 10
    for name in found:
        assert vars(sys.modules[name]).get("eval") is literal, name


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${env:HOME}", "x ${ oc.decode:1}"])
@pytest.mark.parametrize("place", ["cfg", "args"])
def test_options_of_a_file_do_not_read_the_environment(place, text):
    inner = {"model": {"names": ["a", {"b": text}]}}
    state = {
        "model": {"a": torch.zeros(1)},
        "cfg": inner if place == "cfg" else None,
        "args": Namespace(**inner) if place == "args" else None,
    }
    with pytest.raises(UsageError, match="must not read the environment"):
        checkpoint_utils._upgrade_state_dict(state)


def test_other_options_may_be_named():
    state = {"cfg": None, "args": None, "optimizer_history": [{"optimizer_name": "x", "lr_scheduler_state": {},
             "num_updates": 1}], "extra_state": {"train_iterator": {}},
             "model": {"a": torch.zeros(1)}, "more": "${model.encoder_embed_dim}"}  # fmt: skip
    assert checkpoint_utils._upgrade_state_dict(state) is state


@pytest.mark.parametrize("name", ["OrderedDict", "bisect", "__loader__", "none", "MetersDict", 3])
def test_meters_are_made_of_meters_only(name):
    with pytest.raises(UsageError, match="no meter of fairseq"):
        MetersDict().load_state_dict([(0, "loss", name, {})])


def test_meters_come_back():
    from fairseq.logging.meters import AverageMeter

    before, after = MetersDict(), MetersDict()
    before.add_meter("loss", AverageMeter(), 10)
    before["loss"].update(3.0)
    after.load_state_dict(before.state_dict())
    assert after["loss"].avg == 3.0


LARGE = [("encoder_layers", 10**9), ("layers", 101), ("decoder_embed_dim", 2**20), ("encoder_ffn_embed_dim", 1e300),
         ("synthesizer_max_length", 10**6), ("attention_heads", 10**5), ("persistent_memory", 10**9)]  # fmt: skip


@pytest.mark.parametrize("name, value", LARGE)
@pytest.mark.parametrize("place", ["cfg", "args", "namespace"])
def test_a_model_is_no_larger_than_its_file(place, name, value):
    options = {name: value}
    state = {"model": {"a": torch.zeros(3)}, "args": Namespace(**options) if place == "args" else None}
    state["cfg"] = {"model": Namespace(**options) if place == "namespace" else options} if place != "args" else None
    with pytest.raises(UsageError, match=f"{name} .*nothing in it is that large"):
        checkpoint_utils._upgrade_state_dict(state)


def test_other_options_of_a_training_are_no_sizes():
    """fairseq's older models keep all options in one Namespace."""
    from fairseq import options

    parser = options.get_training_parser()
    known = options.parse_args_and_arch(parser, ["--arch", "transformer", "--task", "translation", "data"])
    vars(known).update(seed=10**9, max_tokens=10**9, max_source_positions=10**6, embed_dim=None, batch_size_valid=10**7)
    stored_options._check_sizes(vars(known), {"a": torch.zeros(3)})


def test_a_large_file_may_hold_a_large_model():
    weights = {f"layer{i}": torch.zeros(1) for i in range(200)}
    stored_options._check_sizes({"encoder_layers": 200}, weights)
    stored_options._check_sizes({"encoder_embed_dim": 2**14}, {"a": torch.zeros(1, 2**14)})
    stored_options._check_sizes({"encoder_embed_dim": 2**14}, {"frozen_seed": torch.zeros(1)})
