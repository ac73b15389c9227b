"""Sentences of a text file through a model, with the attention they get."""

from typing import Any, Iterator, List, Optional, Tuple

import torch
from torch import Tensor

from fairseq_synth.errors import UsageError
from fairseq_synth.inspection.capture import Reading, by_kind, captured
from fairseq_synth.inspection.loading import Opened

BEAM = 5


def read_lines(path: str, option: str) -> List[str]:
    """The lines that are not empty. Raises UsageError where there are none."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(f"{option} {path}: cannot be read: {why}") from error
    lines = [line for line in lines if line]
    if not lines:
        raise UsageError(f"{option} {path}: has no text in it")
    return lines


def pairs(text: str, target: Optional[str]) -> List[Tuple[str, Optional[str]]]:
    """Lines and their translations. Raises UsageError where there are not as many of both."""
    lines = read_lines(text, "--text")
    if target is None:
        return [(line, None) for line in lines]
    translations = read_lines(target, "--target")
    if len(translations) != len(lines):
        raise UsageError(
            f"--target {target}: {len(translations)} lines for {len(lines)} lines of --text {text}; give a translation "
            f"for every line"
        )
    return list(zip(lines, translations))


def is_translation(opened: Opened) -> bool:
    return hasattr(opened.model, "encoder")


def read(opened: Opened, lines: List[Tuple[str, Optional[str]]]) -> Iterator[Reading]:
    """One after the other, each alone in its batch. Translations that are not given are made by beam search."""
    for number, (line, translation) in enumerate(lines, 1):
        place = f"line {number} of --text"
        source = encode(opened.source, line)
        if is_translation(opened):
            yield _translate(opened, source, translation, place)
        else:
            yield _continue(opened, source, place)


def encode(dictionary: Any, line: str) -> Tensor:
    """Token numbers with the end of the sentence; what the dictionary lacks becomes <unk>."""
    return dictionary.encode_line(line, add_if_not_exist=False, append_eos=True).long()


def unknown(opened: Opened, lines: List[Tuple[str, Optional[str]]]) -> Tuple[int, int]:
    """Tokens that the source dictionary lacks, and all tokens."""
    tokens = [token for line, _ in lines for token in line.split()]
    return sum(opened.source.index(token) == opened.source.unk() for token in tokens), len(tokens)


def _translate(opened: Opened, source: Tensor, translation: Optional[str], place: str) -> Reading:
    model: Any = opened.model
    limits = model.max_positions()
    _check_length(source, limits[0], place)
    net_input = {"src_tokens": source[None], "src_lengths": torch.tensor([len(source)])}
    with torch.no_grad():
        if translation is None:
            target = _beam_search(opened, net_input)
        else:
            target = encode(opened.target, translation)
            _check_length(target, limits[1], place.replace("--text", "--target"))
        shown = _shifted(target, opened.target.eos())
        with captured(model) as caught:
            model(**net_input, prev_output_tokens=shown[None])
    return Reading(_words(opened.source, source), _words(opened.target, shown), by_kind(caught))


def _beam_search(opened: Opened, net_input: Any) -> Tensor:
    from fairseq.sequence_generator import SequenceGenerator

    generator = SequenceGenerator([opened.model], opened.target, beam_size=BEAM)
    return generator.generate([opened.model], {"net_input": net_input})[0][0]["tokens"]


def _continue(opened: Opened, tokens: Tensor, place: str) -> Reading:
    """A language model reads the end of the sentence before, then the line."""
    model: Any = opened.model
    shown = torch.cat([tokens.new_tensor([opened.source.eos()]), tokens[:-1]])
    _check_length(shown, model.decoder.max_positions(), place)
    with torch.no_grad(), captured(model) as caught:
        model(shown[None])
    words = _words(opened.source, shown)
    return Reading([], words, by_kind(caught))


def _shifted(target: Tensor, eos: int) -> Tensor:
    """What the decoder reads when it predicts `target`."""
    return torch.cat([target.new_tensor([eos]), target[:-1]])


def _words(dictionary: Any, tokens: Tensor) -> List[str]:
    return [dictionary[int(token)] for token in tokens]


def _check_length(tokens: Tensor, limit: int, place: str) -> None:
    if len(tokens) > limit:
        raise UsageError(
            f"{place}: {len(tokens)} tokens (end of sentence included) are more than the model's {limit}; shorten it"
        )
