"""Sets of triples and their texts: the XML, JSON and parquet of WebNLG and DART.

XML is read without document types, so that no entity of a hostile file is ever expanded.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

from lora_exp.errors import UserError
from lora_exp.tasks import tables

SUFFIXES = (".xml", ".xml.gz", ".json", ".json.gz", ".parquet")

Triple = tuple[str, str, str]
"""Subject, property, object."""


@dataclass
class Entry:
    """Triples and what people wrote of them."""

    place: str
    """Where it stands: `FILE:LINE` in XML, `FILE, entry N` or `FILE, row N` otherwise."""
    category: str | None
    """The topic (WebNLG)."""
    triples: list[Triple] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    """For each text what is said of it (`good` in WebNLG, its origin in DART), and the text."""


def webnlg(path: Path) -> Iterator[Entry]:
    """The entries of a file of the WebNLG Challenge 2017, with their modified triples.

    Args:
        path: XML of the challenge, JSON of its readers, or parquet of the hub.

    Raises:
        UserError: for what is malformed, with its place.
    """
    match tables.kind(path):
        case "xml":
            yield from _xml(path)
        case "json":
            document = _json(path)
            entries = document.get("entries") if isinstance(document, dict) else None
            if not isinstance(entries, list):
                raise UserError(f'{path}: expected an object with a list of "entries".')
            for number, numbered in enumerate(entries, 1):
                place = f"{path}, entry {number}"
                match numbered:
                    case {**one} if len(one) == 1:
                        yield _webnlg_json(place, next(iter(one.values())))
                    case _:
                        raise UserError(f'{place}: expected {{"{number}": {{...}}}}.')
        case _:
            columns = ("category", "modified_triple_sets", "lex", "test_category")
            for place, (category, triples, lex, part) in tables.rows(path, columns):
                # The hub's test split holds the unseen part once more, and the bare inputs.
                if part != "testdata_unseen_with_lex":
                    yield _webnlg_row(place, category, triples, lex)


def dart(path: Path) -> Iterator[Entry]:
    """The entries of a file of DART.

    Args:
        path: XML or JSON of Yale-LILY/dart, or parquet of the hub.

    Raises:
        UserError: for what is malformed, with its place.
    """
    match tables.kind(path):
        case "xml":
            yield from _xml(path)
        case "json":
            document = _json(path)
            if not isinstance(document, list):
                raise UserError(f"{path}: expected a list of entries.")
            for number, entry in enumerate(document, 1):
                place = f"{path}, entry {number}"
                match entry:
                    case {"tripleset": triples, "annotations": texts}:
                        yield _dart_entry(place, triples, texts)
                    case _:
                        raise _unlike(place, '{"tripleset": [...], "annotations": [...]}')
        case _:
            for place, (triples, texts) in tables.rows(path, ("tripleset", "annotations")):
                yield _dart_entry(place, triples, texts)


# XML


def _xml(path: Path) -> list[Entry]:
    """`<entry category="..."> <mtriple>s | p | o</mtriple> <lex comment="...">text</lex>`."""
    parser = expat.ParserCreate()
    entries: list[Entry] = []
    inside: list[str] = []  # the elements that are open
    text: list[str] = []  # what the innermost one holds
    comment = ""

    def place() -> str:
        return f"{path}:{parser.CurrentLineNumber}"

    def refuse(*_: object) -> None:
        raise UserError(
            f"{place()}: has a document type (<!DOCTYPE ...>), which could define entities; "
            "the benchmark's files have none."
        )

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal comment
        if name == "entry":
            entries.append(Entry(place(), attributes.get("category")))
        elif name in ("mtriple", "lex") and "entry" not in inside:
            raise UserError(f"{place()}: <{name}> stands outside an <entry>.")
        elif name == "lex":
            comment = attributes.get("comment", "")
        inside.append(name)
        text.clear()

    def end(name: str) -> None:
        content = "".join(text)
        if name == "mtriple":
            entries[-1].triples.append(_split(place(), content))
        elif name == "lex":
            entries[-1].texts.append((comment, content))
        inside.pop()

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = text.append
    try:
        with tables.open_binary(path) as file:
            parser.ParseFile(file)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise UserError(f"{path}:{error.lineno}: not well-formed XML ({reason}).") from error
    except (OSError, EOFError, zlib.error) as error:
        raise tables.unreadable(str(path), path, error) from error
    return entries


def _split(place: str, text: str) -> Triple:
    # A subject or object may be empty; what stands after the second bar is the object's.
    parts = [part.strip() for part in f" {text.strip()} ".split(" | ", 2)]
    if len(parts) != 3:
        raise UserError(f"{place}: the triple is {text!r}; expected `subject | property | object`.")
    return parts[0], parts[1], parts[2]


# JSON and parquet


def _json(path: Path) -> Any:
    try:
        with tables.open_binary(path) as file:
            return json.loads(file.read().decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON in UTF-8 ({error}).") from error
    except (OSError, EOFError, zlib.error) as error:
        raise tables.unreadable(str(path), path, error) from error


def _webnlg_json(place: str, entry: Any) -> Entry:
    try:
        return Entry(
            place,
            entry["category"],
            [
                (each["subject"], each["property"], each["object"])
                for each in entry["modifiedtripleset"]
            ],
            [(each["comment"], each["lex"]) for each in entry["lexicalisations"]],
        )
    except (KeyError, TypeError) as error:
        expected = (
            '{"category": ..., "modifiedtripleset": [{"subject", "property", "object"}, ...], '
            '"lexicalisations": [{"comment", "lex"}, ...]}'
        )
        raise _unlike(place, expected) from error


def _webnlg_row(place: str, category: Any, triples: Any, lex: Any) -> Entry:
    try:
        (sets,) = _columns(triples, "mtriple_set")
        texts = list(zip(*_columns(lex, "comment", "text"), strict=True))
        return Entry(place, category, [_split(place, each) for each in sets[0]], texts)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        expected = "modified_triple_sets {mtriple_set} and lex {comment, text}"
        raise _unlike(place, expected) from error


def _dart_entry(place: str, triples: Any, annotations: Any) -> Entry:
    try:
        texts = list(zip(*_columns(annotations, "source", "text"), strict=True))
        return Entry(place, None, [(s, p, o) for s, p, o in triples], texts)
    except (KeyError, TypeError, ValueError) as error:
        expected = "a tripleset of [subject, property, object] and annotations {source, text}"
        raise _unlike(place, expected) from error


def _columns(value: Any, *names: str) -> list[list[Any]]:
    """The named fields of a list of structs, or of the struct of lists that the hub makes of it."""
    if isinstance(value, dict):
        return [value[name] for name in names]
    return [[each[name] for each in value] for name in names]


def _unlike(place: str, expected: str) -> UserError:
    return UserError(f"{place}: not an entry as the benchmark has them; expected {expected}.")
