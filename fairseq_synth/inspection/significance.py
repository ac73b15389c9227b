"""Is one translation better than another by more than chance? sacrebleu's paired bootstrap (Koehn 2004)."""

import re
from typing import Dict, List, Optional, Sequence, Tuple

from fairseq_synth.errors import UsageError
from fairseq_synth.inspection.evaluations import Evaluation, Score, Translation, translations
from fairseq_synth.inspection.grouping import P_VALUE, Measured, settings

_TOKENIZER = re.compile(r"\|tok:([^|]+)")


def with_p_values(measured: Sequence[Measured], tokenize: Optional[str] = None) -> List[Measured]:
    """Every run with the p-values of its BLEU against the first run, or the run of the same seed that is like it.

    tokenize: of sacrebleu; None: the one that the run's score was made with.

    Raises:
        UsageError: the first run has no translations, or translations of other sentences.
    """
    read = {m.run.path: translations(m.run.path) for m in measured}
    if not read[measured[0].run.path]:
        raise UsageError(f"--paired: {measured[0].run.path} has no translations (generate*.txt) to compare with")
    return [_compared(one, _base(measured, one), read, tokenize) for one in measured]


def _base(measured: Sequence[Measured], one: Measured) -> Measured:
    """The run like the first one that has this seed; else the first."""
    like = [m for m in measured if settings(m.run) == settings(measured[0].run)]
    return next((m for m in like if m.run.options.get("seed") == one.run.options.get("seed")), measured[0])


def _compared(
    one: Measured, base: Measured, read: Dict[str, Dict[str, Translation]], tokenize: Optional[str]
) -> Measured:
    if settings(one.run) == settings(base.run):
        return one
    evaluations = []
    for evaluation in one.evaluations:
        pair = [read[m.run.path].get(evaluation.label) for m in (base, one)]
        if evaluation.scores and pair[0] is not None and pair[1] is not None:
            score = _p_value(pair[0], pair[1], tokenize or _tokenizer(evaluation), f"{one.run.path} {evaluation.label}")
            evaluation = evaluation._replace(scores=(*evaluation.scores, score))
        evaluations.append(evaluation)
    return one._replace(evaluations=evaluations)


def _tokenizer(evaluation: Evaluation) -> Optional[str]:
    found = [_TOKENIZER.search(score.signature) for score in evaluation.scores if score.metric == "BLEU"]
    return found[0].group(1) if found and found[0] else None


def _p_value(base: Translation, other: Translation, tokenize: Optional[str], name: str) -> Score:
    try:
        from sacrebleu.metrics import BLEU
        from sacrebleu.significance import PairedTest
    except ImportError as error:
        raise UsageError("--paired: needs sacrebleu 2 or later: pip install 'sacrebleu>=2'") from error
    if base.references != other.references:
        raise UsageError(f"--paired: {name} translates other sentences than the first run; leave it out")
    order = sorted(base.references)
    metric = BLEU(tokenize=tokenize, force=True, references=[[base.references[n] for n in order]])
    systems: List[Tuple[str, Sequence[str]]] = [
        (str(i), [text.hypotheses[n] for n in order]) for i, text in enumerate((base, other))
    ]
    signatures, scores = PairedTest(systems, {"BLEU": metric}, references=None, test_type="bs")()
    result = scores["BLEU"][1]
    signature = f"paired bootstrap of BLEU against the first row, {signatures['BLEU']}"
    return Score(P_VALUE, float(result.p_value), signature)  # type: ignore[union-attr,arg-type]
