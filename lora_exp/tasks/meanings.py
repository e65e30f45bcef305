"""E2E, WebNLG and DART as a model reads them: meaning representations written as one line.

The lines are those that microsoft/LoRA makes (`examples/NLG/src/format_converting_*.py`):

    name : Blue Spice | Type : coffee shop | area : city centre      E2E
    Aarhus_Airport : cityServed : "Aarhus, Denmark"                  WebNLG
    Mars Hill College : joined : 1973                                DART

White space inside a reference is collapsed to single blanks, as the metrics' scripts read one
reference a line; so all formats of a corpus give the same pairs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_exp.errors import UserError
from lora_exp.tasks import documents, tables
from lora_exp.tasks.documents import Entry, Triple

SUFFIXES = {
    "e2e": (".csv", ".csv.gz", ".txt", ".txt.gz", ".jsonl", ".jsonl.gz", ".parquet"),
    "webnlg": (*documents.SUFFIXES, ".jsonl", ".jsonl.gz"),
    "dart": (*documents.SUFFIXES, ".jsonl", ".jsonl.gz"),
}
"""How the files of a corpus may end."""

STEMS = {
    "e2e": {
        "train": ("train", "trainset"),
        "validation": ("validation", "valid", "dev", "devset"),
        "test": ("test", "testset_w_refs"),
    },
    "webnlg": {
        "train": ("train",),
        "validation": ("validation", "valid", "dev"),
        "test": ("test", "testdata_with_lex"),
    },
    "dart": {
        "train": ("train", "dart-v1.1.1-full-train"),
        "validation": ("validation", "valid", "dev", "dart-v1.1.1-full-dev"),
        "test": ("test", "dart-v1.1.1-full-test"),
    },
}
"""What the files of a split may be called; other splits have files of their own name."""

SEEN = {
    "Airport",
    "Astronaut",
    "Building",
    "City",
    "ComicsCharacter",
    "Food",
    "Monument",
    "SportsTeam",
    "University",
    "WrittenWork",
}
"""The categories of WebNLG's training data (microsoft/LoRA, `format_converting_webnlg.py`)."""

RENAMED = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}
"""E2E's attributes with another name in the linearised form."""

ATTRIBUTE = re.compile(r"([^\[\],]+)\[([^\[\]]*)\]")


@dataclass(frozen=True)
class Meaning:
    """A source with its references, as one row or entry of a file gives them."""

    place: str
    source: str
    references: tuple[str, ...]
    """Empty for an entry that nobody described well."""
    group: str | None = None
    """`seen` or `unseen` for WebNLG."""


def read(corpus: str, path: Path) -> Iterator[Meaning]:
    """The meanings in a file, in its order.

    Args:
        corpus: `e2e`, `webnlg` or `dart`.
        path: a file that ends in one of `SUFFIXES`. JSON lines hold `source`, already linearised,
            `references` and, for WebNLG, `category`.

    Raises:
        UserError: for what is malformed, with its place.
    """
    kind = tables.kind(path)
    if kind == "jsonl":
        return _linearised(corpus, path)
    match corpus:
        case "e2e":
            return _e2e_lines(path) if kind == "txt" else _e2e_rows(path, kind)
        case "webnlg":
            return map(_webnlg, documents.webnlg(path))
        case _:
            return map(_dart, documents.dart(path))


def _linearised(corpus: str, path: Path) -> Iterator[Meaning]:
    columns = ["source", "references"] + ["category"] * (corpus == "webnlg")
    for place, (source, references, *category) in tables.rows(path, columns):
        tables.check_text(place, "source", source)
        if not isinstance(references, list):
            raise UserError(
                f"{place}: the column 'references' is {tables.shown(references)}; "
                "expected a list of texts."
            )
        group = _group(place, *category) if category else None
        yield Meaning(place, source, _texts(place, references), group)


def _e2e_rows(path: Path, kind: str) -> Iterator[Meaning]:
    """The challenge's CSV (mr, ref), or the hub's parquet."""
    csv = kind == "csv"
    columns = ("mr", "ref") if csv else ("meaning_representation", "human_reference")
    for place, (meaning, reference) in tables.rows(path, columns):
        for column, text in zip(columns, (meaning, reference), strict=True):
            tables.check_text(place, column, text)
        yield Meaning(place, linearise_attributes(place, meaning), _texts(place, [reference]))


def _e2e_lines(path: Path) -> Iterator[Meaning]:
    """microsoft/LoRA's text: `source||reference`, both tokenised with blanks."""
    for number, line in tables.lines(path):
        if line.isspace():
            continue
        place = f"{path}:{number}"
        source, separator, reference = line.strip().partition("||")
        if not separator:
            raise UserError(f"{place}: has no `||`; expected `source||reference`.")
        yield Meaning(place, source, _texts(place, [reference]))


def _webnlg(entry: Entry) -> Meaning:
    good = [text for comment, text in entry.texts if comment == "good"]
    source = linearise_triples(entry.place, entry.triples)
    group = _group(entry.place, entry.category)
    return Meaning(entry.place, source, _texts(entry.place, good), group)


def _dart(entry: Entry) -> Meaning:
    triples = [(s, str(p).lower(), o) for s, p, o in entry.triples]
    source = linearise_triples(entry.place, triples)
    return Meaning(entry.place, source, _texts(entry.place, [text for _, text in entry.texts]))


def linearise_attributes(place: str, meaning: str) -> str:
    """`name[Blue Spice], eatType[pub]` as `name : Blue Spice | Type : pub`.

    Raises:
        UserError: that begins with `place`, for what is not of this form.
    """
    parts = re.split(r"(?<=\]),\s*", meaning.strip())
    matches = [ATTRIBUTE.fullmatch(part) for part in parts]
    if None in matches:
        raise UserError(
            f"{place}: the meaning representation is {meaning!r}; "
            "expected attributes as in name[Blue Spice], eatType[pub]."
        )
    attributes = [(match[1].strip(), match[2].strip()) for match in matches if match]
    return " | ".join(f"{RENAMED.get(name, name)} : {value}" for name, value in attributes)


def linearise_triples(place: str, triples: list[Triple]) -> str:
    """`subject : property : object`, joined with ` | `.

    Raises:
        UserError: that begins with `place`, if there is no triple or a part of one is no text.
    """
    if not triples:
        raise UserError(f"{place}: the entry has no triples.")
    for triple in triples:
        for part in triple:
            tables.check_text(place, "triple", part)
    return " | ".join(" : ".join(triple) for triple in triples)


def _texts(place: str, texts: list[str]) -> tuple[str, ...]:
    """Those that are not empty, with single blanks."""
    for text in texts:
        tables.check_text(place, "reference", text)
    return tuple(words for text in texts if (words := " ".join(text.split())))


def _group(place: str, category: object) -> str:
    if not isinstance(category, str):
        raise UserError(f"{place}: the category is {tables.shown(category)}; expected its name.")
    return "seen" if category in SEEN else "unseen"
