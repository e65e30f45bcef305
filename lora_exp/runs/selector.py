"""Which runs are meant: `task=rte state=failed lora.r>4 grid=NAME`, the language of all verbs."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property
from typing import Any, get_args, get_type_hints

from lora_exp.errors import UserError, nearest
from lora_exp.runs import shapes
from lora_exp.runs.bounds import printable
from lora_exp.runs.config import Config
from lora_exp.runs.records import LOST, RunRecord

STATES = (*shapes.STATES, LOST)
ORDERS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
TERM = re.compile(
    r"""(?P<key>[A-Za-z_][\w./]*)\s*(?P<operator>[!<>]=|==?|<|>)\s*
        (?P<value>"[^"]*"|'[^']*'|[^\s"']+)(?:\s+|$)""",
    re.VERBOSE,
)
EXAMPLES = "such as task=rte, state=failed,lost, 'lora.r>4' or model=roberta*"


def _model(config: Mapping[str, Any]) -> str:
    name = str(config.get("model", {}).get("name_or_path") or "")
    return re.split(r"[/:]", name.removesuffix("/model").rstrip("/"))[-1]


def _placement(config: Mapping[str, Any]) -> str:
    placement = config.get("lora", {}).get("placement", {})
    return "custom" if placement.get("targets") else str(placement.get("preset"))


# What is no key of the config, in the order of what it costs to look it up.
OWN: dict[str, Callable[[RunRecord], Any]] = {
    "name": lambda run: run.name,
    "signature": lambda run: run.signature,
    "grid": lambda run: [grid.name for grid in run.grids],
    "study": lambda run: run.studies,
    "group": lambda run: run.group,
    "task": lambda run: run.config.get("task", {}).get("name"),
    "model": lambda run: _model(run.config),
    "placement": lambda run: _placement(run.config),
    "state": lambda run: run.state,
}
ALIASES = {"lora/placement": "placement"}  # as on the command line of a run


@dataclass(frozen=True)
class Term:
    """One condition, as it was given."""

    key: str
    operator: str
    value: str

    def __str__(self) -> str:
        return f"{self.key}{self.operator}{self.value}"

    def holds(self, run: RunRecord) -> bool:
        """Whether a run is meant."""
        values = self.of(run)
        if self.operator in ORDERS:
            order, bound = ORDERS[self.operator], float(self.value)
            return any(_is_number(value) and order(value, bound) for value in values)
        return any(self._equals(value) for value in values) == (self.operator == "=")

    def of(self, run: RunRecord) -> list[Any]:
        """The run's values of the key: several for a list, one otherwise."""
        value = value_of(run, self.key)
        return value if isinstance(value, list) else [value]

    @cached_property
    def options(self) -> list[str]:
        """The values that the filter allows, or with `!=` forbids."""
        return self.value.split(",")

    @cached_property
    def _numbers(self) -> set[float]:
        return {number for option in self.options if (number := _number(option)) is not None}

    def _equals(self, value: Any) -> bool:
        if _is_number(value) and value in self._numbers:
            return True
        text = text_of(value)
        return any(fnmatchcase(text, option) for option in self.options)

    def check(self) -> None:
        """See that it can be compared.

        Raises:
            UserError: if it never can.
        """
        kind = str if self.key in OWN else kinds()[self.key]
        if self.operator in ORDERS:
            if kind is not float:
                raise UserError(f"{self}: {self.key} is no number; compare it with = or !=.")
            if _number(self.value) is None:
                raise UserError(f"{self}: {self.value} is no number.")
            return
        for option in self.options:
            if set(option) & set("*?[") or option == "null":
                continue
            if self.key == "state" and option not in STATES:
                raise UserError(f"{self}: {nearest(option, STATES, kind='states')}")
            if kind is float and _number(option) is None:
                raise UserError(f"{self}: {option} is no number, and {self.key} is one.")
            if kind is bool and option not in ("true", "false"):
                raise UserError(f"{self}: {self.key} is true or false.")


@dataclass(frozen=True)
class Selector:
    """Conditions that all hold; none mean every run."""

    terms: tuple[Term, ...]

    @classmethod
    def parse(cls, tokens: Iterable[str]) -> Selector:
        """
        Args:
            tokens: KEY OP VALUE each, or several in one, with blanks between them. OP is one of
                `= != > < >= <=`. A VALUE of `=` and `!=` may have the wildcards of a shell and be
                several with commas between them. KEY is one of the config, or of `OWN`.

        Raises:
            UserError: for what is no such condition.
        """
        text = " ".join(tokens).strip()
        terms: list[Term] = []
        while text:
            found = TERM.match(text)
            if found is None:
                rest = text.split()[0]
                raise UserError(f"{rest}: a filter is KEY=VALUE (or != > < >= <=), {EXAMPLES}.")
            symbol = "=" if found["operator"] == "==" else found["operator"]
            value = found["value"].strip("\"'")
            key = known_key(found["key"], f"{found['key']}{symbol}{value}")
            term = Term(key, symbol, value)
            term.check()
            terms.append(term)
            text = text[found.end() :]
        costs = {key: cost for cost, key in enumerate(OWN)}
        return cls(tuple(sorted(terms, key=lambda term: costs.get(term.key, costs["task"]))))

    def __bool__(self) -> bool:
        return bool(self.terms)

    def __str__(self) -> str:
        return printable(" ".join(map(str, self.terms)))

    def names(self, key: str) -> bool:
        """Whether a key is among the conditions."""
        return any(term.key == key for term in self.terms)

    def matches(self, run: RunRecord) -> bool:
        """Whether a run is meant."""
        return all(term.holds(run) for term in self.terms)

    def among(self, runs: Sequence[RunRecord]) -> list[RunRecord]:
        """The runs that are meant.

        Raises:
            UserError: for a value that no run has: it must be misspelt.
        """
        chosen = [run for run in runs if self.matches(run)]
        if runs and not chosen:
            for term in self.terms:
                self._check_spelling(term, runs)
        return chosen

    @staticmethod
    def _check_spelling(term: Term, runs: Sequence[RunRecord]) -> None:
        exact = term.operator == "=" and not set(term.value) & set("*?[,")
        if exact and term.key != "state" and not any(term.holds(run) for run in runs):
            known = {text_of(value) for run in runs for value in term.of(run)}
            hint = nearest(term.value, known) if known else f"None has a {term.key}."
            raise UserError(f"{term}: there is no such run. {hint}")


# -- keys and values -------------------------------------------------------------------------------


def known_key(key: str, given: str) -> str:
    """A key as it is looked up.

    Args:
        key: of the config, or of `OWN`.
        given: what the user wrote, for the message.

    Raises:
        UserError: if there is none such.
    """
    key = ALIASES.get(key, key)
    if key not in OWN and key not in kinds():
        raise UserError(f"{given}: there is no such key. {_near_key(key)}")
    return key


def value_of(run: RunRecord, key: str) -> Any:
    """A run's value of a key; its default, if the field of the config is younger than the run."""
    return OWN[key](run) if key in OWN else _configured(run.config, key)


def text_of(value: Any) -> str:
    """A value as the command line of a run has it."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


@cache
def kinds(node: type = Config, prefix: str = "") -> dict[str, type]:
    """Every key of the config, with `float` for numbers, `bool`, or `str` for all else."""
    found: dict[str, type] = {}
    hints = get_type_hints(node)
    for spec in fields(node):
        hint = hints[spec.name]
        if is_dataclass(hint):
            assert isinstance(hint, type)
            found |= kinds(hint, f"{prefix}{spec.name}.")
            continue
        types = set(get_args(hint) or (hint,)) - {type(None)}
        kind = float if types <= {int, float} else bool if types == {bool} else str
        found[prefix + spec.name] = kind
    return found


@cache
def _defaults() -> dict[str, Any]:
    return asdict(Config())


def _configured(config: Mapping[str, Any], key: str) -> Any:
    """A value of a config; a field that is younger than the run has its default."""
    parts = key.split(".")
    for node in (config, _defaults()):
        for part in parts:
            if not isinstance(node, Mapping) or part not in node:
                break
            node = node[part]
        else:
            return node
    return None


def _near_key(key: str) -> str:
    known = {*OWN, *kinds()}
    same = sorted(name for name in known if name.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1])
    return f"Did you mean {' or '.join(same)}?" if same else nearest(key, known, kind="keys")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
