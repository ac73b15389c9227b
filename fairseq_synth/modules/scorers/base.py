"""The contract of a scorer, and the registry that names them.

A scorer answers one question: the attention logits of query rows ``[t, t + T)`` against key columns ``[0, S)``.
Shapes: B batch, T queries, S keys, H heads, D head dim, C model dim, N maximum length.
"""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Type

from torch import Tensor, nn

from fairseq_synth.errors import UsageError, option_name
from fairseq_synth.modules.initial import Rule, fill
from fairseq_synth.modules.positions import Positions
from fairseq_synth.modules.scorers.logits import AnyLogits

# what logits can depend on, each including those before it
DEPENDS_ON = ("positions", "lengths", "tokens")


class AttentionConfig(NamedTuple):
    """The attention that a scorer works for. attention_dim: H * D; None: embed_dim. place: its name in the model."""

    embed_dim: int
    num_heads: int
    attention_dim: Optional[int] = None
    place: str = ""
    causal: bool = False
    cross: bool = False

    @property
    def inner_dim(self) -> int:
        return self.attention_dim or self.embed_dim

    @property
    def head_dim(self) -> int:
        return self.inner_dim // self.num_heads

    def of_heads(self, count: int) -> "AttentionConfig":
        """The same for some of the heads."""
        return self._replace(num_heads=count, attention_dim=count * self.head_dim)

    def seed(self, seed: int) -> int:
        """A seed of its own for every attention, independent of how many others there are."""
        return int.from_bytes(hashlib.sha256(f"{seed}:{self.place}".encode()).digest()[:7], "big")


@dataclass
class NoOptions:
    """Of a scorer that has none."""


@dataclass
class LengthOptions:
    """Of scorers that know positions up to N."""

    max_length: int = field(
        default=256, metadata={"help": "N: the longest sequence the synthesized maps cover", "least": 1}
    )


class Scorer(nn.Module):
    """Base class. A subclass sets the flags and implements :meth:`logits`.

    depends_on:   what the logits depend on: ``positions`` (then they are H x T x S, shared by the whole batch),
                  ``lengths`` (of the sentences, too) or ``tokens`` (B x H x T x S).
    needs_keys:   True -> :meth:`logits` receives projected queries and keys (and the keys are cached).
    Options:      dataclass of what ``--synthesizer-...`` sets, given to :func:`register_scorer`.
    max_length:   N, or None where any length will do.

    Args:
        attention: what it scores for.
        options: an instance of ``Options``.
    """

    depends_on: str = "tokens"
    needs_keys: bool = False
    Options: Type[Any] = NoOptions
    freeze_group = "scorer"

    def __init__(self, attention: AttentionConfig, options: Any):
        super().__init__()
        self.num_heads = attention.num_heads
        self.max_length: Optional[int] = getattr(options, "max_length", None)

    def logits(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> AnyLogits:
        """Logits before any mask; as a product where there is one: a causal attention then makes half of them, and a
        mixture makes those of all its scorers at once.

        x: T x B x C, the layer's input at the query positions. q: B x H x T x D, already divided by sqrt(D);
        k: B x H x S x D; both None unless ``needs_keys``, and of the heads in :meth:`key_heads` only.
        """
        raise NotImplementedError

    def forward(self, x: Tensor, q: Optional[Tensor], k: Optional[Tensor], positions: Positions) -> Tensor:
        """The whole matrix, (B x) H x T x S."""
        return self.logits(x, q, k, positions).full()

    def rule(self, name: str) -> Optional[Rule]:
        """How this module's own parameter ``name`` starts, with and without --frozen-init; None: as the constructor
        left it, and --frozen-init can draw it only where that is one constant."""
        return None

    def reset_parameters(self) -> None:
        """Draw the parameters that have a rule. :func:`build_scorer` calls it."""
        for name, parameter in self.named_parameters(recurse=False):
            rule = self.rule(name)
            if rule is not None:
                fill(parameter, rule)

    def key_heads(self) -> List[int]:
        """The heads whose queries and keys the scorer needs."""
        return list(range(self.num_heads)) if self.needs_keys else []

    @classmethod
    def check(cls, options: Any) -> None:
        """Raises UsageError for options that do not fit together; each by itself is checked by its ``least``."""


SCORERS: Dict[str, Type[Scorer]] = {}
# called with the options of every scorer that is registered from then on
LISTENERS: List[Callable[[List[dataclasses.Field]], None]] = []


def register_scorer(name: str, options: Optional[Type[Any]] = None) -> Callable[[Type[Scorer]], Type[Scorer]]:
    """Class decorator: makes a scorer usable in ``--encoder-self-attention`` and the like.

    options: a dataclass (default: that of the parent class). Its fields become ``--synthesizer-FIELD``, each with a
    ``help`` in its metadata, and ``least`` where a number has a lower limit. Scorers that have a field of the same
    name share the option.

    Raises ValueError where the name is taken, or holds a character that specs use (``+ , * | :``) or a space, and
    where an option is declared otherwise by another scorer.
    """

    def register(cls: Type[Scorer]) -> Type[Scorer]:
        if SCORERS.get(name, cls) is not cls:
            raise ValueError(f"scorer {name!r} is already registered by {SCORERS[name].__name__}")
        if not name or any(c in "+,*|:" or c.isspace() for c in name):
            raise ValueError(f"scorer name {name!r}: '+', ',', '*', '|', ':' and spaces have a meaning in specs")
        if options is not None:
            cls.Options = options
        fields = list(dataclasses.fields(cls.Options))
        for one in fields:
            _check_shared(name, one)
        SCORERS[name] = cls
        for listener in LISTENERS:
            listener(fields)
        return cls

    return register


def _check_shared(name: str, one: dataclasses.Field) -> None:
    for other in scorer_options():
        if other.name == one.name and (other.type, other.default) != (one.type, one.default):
            raise ValueError(
                f"scorer {name!r}: option {one.name} has type {one.type} and default {one.default!r}, another scorer's "
                f"has {other.type} and {other.default!r}; take the same, or another name"
            )


def scorer_options() -> List[dataclasses.Field]:
    """The options of all scorers, each once."""
    found: Dict[str, dataclasses.Field] = {}
    for cls in SCORERS.values():
        for one in dataclasses.fields(cls.Options):
            found.setdefault(one.name, one)
    return list(found.values())


def takers(option: str) -> List[str]:
    """The scorers that have this option."""
    return sorted(name for name, cls in SCORERS.items() if option in {f.name for f in dataclasses.fields(cls.Options)})


def scorer_names() -> List[str]:
    return sorted(SCORERS)


def scorer_name(scorer: nn.Module) -> str:
    """As in specs."""
    names = [name for name, cls in SCORERS.items() if cls is type(scorer)]
    return names[0] if names else type(scorer).__name__


def options_of(name: str, given: Any) -> Any:
    """The options of one scorer, from an object that has those of all (or only some, the rest being default)."""
    cls = SCORERS[name].Options
    names = [f.name for f in dataclasses.fields(cls) if hasattr(given, f.name)]
    return cls(**{name: getattr(given, name) for name in names})


def check_options(name: str, given: Any) -> None:
    """Raises UsageError for a value that the scorer cannot have."""
    cls = SCORERS[name]
    options = options_of(name, given)
    for one in dataclasses.fields(options):
        least, value = one.metadata.get("least"), getattr(options, one.name)
        if least is not None and value < least:
            raise UsageError(f"{option_name(f'synthesizer_{one.name}')} {value}: must be at least {least}")
    cls.check(options)


def build_scorer(name: str, attention: AttentionConfig, given: Any = None) -> Scorer:
    """A scorer by its name. given: see :func:`options_of`."""
    scorer = SCORERS[name](attention, options_of(name, given))
    scorer.reset_parameters()
    return scorer
