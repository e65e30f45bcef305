"""A table for people, and the same as Markdown, LaTeX, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

DRAWN = 300
"""Most rows that are drawn with rich, which takes its time."""
MINUS = "\u2212"
JOINED = "\u00a0"
"""A blank at which no line is broken."""
WIDE = 1000
"""Columns of a line where no terminal has to show it."""
GAP = 3
"""Blanks between two columns."""
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How text begins that spreadsheets compute."""
PREAMBLE = r"\usepackage{booktabs} \usepackage{graphicx} \usepackage[T1]{fontenc}"
LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # after the end of a row it would be an option
    '"': r"\textquotedbl{}",
    "±": r"$\pm$",
    MINUS: r"$-$",
    "\u2013": "--",
    "\u00d7": r"$\times$",
    JOINED: "~",
    "\n": " ",
}


@dataclass(frozen=True)
class Cell:
    """What stands in a place of a table."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of cells under a header, and what is to be known about them."""

    title: str
    header: list[str]
    """A heading for each column."""
    rows: list[list[Cell]]
    """As many cells each."""
    notes: list[str]
    """Lines under the table."""
    records: list[dict[str, Any]]
    """The same as plain numbers, for CSV and JSON: one for each cell with a metric."""
    labels: int = 1
    """How many columns, from the left, say what a row is."""
    blocks: set[int] = field(default_factory=set)
    """The rows behind which there is a line."""


def terminal() -> Console:
    """The standard output; where it is no terminal, each row is one line."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    return console


def draw(table: Table, console: Console) -> None:
    """Write it to a terminal, or plainly if it is very long."""
    from rich import box
    from rich.table import Table as Drawn
    from rich.text import Text

    console.print(Text(table.title, style="bold"))
    if len(table.rows) > DRAWN:
        from lora_exp.text import columns as plain

        rows = [[_marked(cell) for cell in row] for row in table.rows]
        console.out(plain(table.header, rows), highlight=False)
    else:
        least, most = _widths(table, "[ \n]"), _widths(table, "\n")
        least = [min(width, console.width // 2) for width in least]
        for columns in _parts(least, table.labels, console.width):
            drawn = Drawn(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
            spare = console.width - sum(least[n] + GAP for n in columns) + GAP
            for number in columns:
                side = "left" if number < table.labels else "right"
                more = max(0, min(most[number] - least[number], spare))
                spare -= more
                name, width = Text(table.header[number]), least[number] + more
                drawn.add_column(name, justify=side, overflow="fold", width=width)
            for number, row in enumerate(table.rows):
                texts = [
                    Text(_broken(row[n].text, column.width), style="bold" if row[n].bold else "")
                    for n, column in zip(columns, drawn.columns, strict=True)
                ]
                drawn.add_row(*texts, end_section=number in table.blocks)
            console.print(drawn)
    for note in table.notes:
        console.print(Text(note, style="dim"))


def _widths(table: Table, breaks: str) -> list[int]:
    """Of each column, the longest text between breaks, a regular expression."""
    columns = zip(table.header, *([cell.text for cell in row] for row in table.rows), strict=True)
    return [
        max(len(part) for text in texts for part in re.split(breaks, text)) for texts in columns
    ]


def _parts(widths: Sequence[int], labels: int, room: int) -> list[list[int]]:
    """The columns that have room beside each other; those that say what a row is come first in
    each part."""
    always = list(range(labels))
    parts = [always[:]]
    for number in range(labels, len(widths)):
        part = [*parts[-1], number]
        if len(part) > labels + 1 and sum(widths[n] + GAP for n in part) - GAP > room:
            parts.append(always[:])
        parts[-1].append(number)
    return parts


def _marked(cell: Cell) -> str:
    text = cell.text.replace(JOINED, " ")
    return f"*{text}*" if cell.bold else text


def _broken(text: str, width: int | None) -> str:
    """Text in lines, where rich would break it at joined blanks as well."""
    lines = []
    for line in text.split("\n"):
        lines.append("")
        for word in line.split(" "):
            longer = f"{lines[-1]} {word}" if lines[-1] else word
            if lines[-1] and width is not None and len(longer) > width:
                lines.append(word)
            else:
                lines[-1] = longer
    return "\n".join(lines).replace(JOINED, " ")


def markdown(tables: Sequence[Table]) -> str:
    """Tables as GitHub and most other readers of Markdown take them."""
    return "\n".join(map(_markdown, tables))


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def plain(text: str) -> str:
        return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", text).translate({10: " ", ord(JOINED): " "})

    sides = ["---" if n < table.labels else "---:" for n in range(len(table.header))]
    lines = [f"**{plain(table.title)}**", "", line([*map(plain, table.header)]), line(sides)]
    for row in table.rows:
        cells = [f"**{plain(cell.text)}**" if cell.bold else plain(cell.text) for cell in row]
        lines.append(line(cells))
    lines += ["", *(f"- {plain(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def latex(tables: Sequence[Table]) -> str:
    """Tables for a document with `PREAMBLE`; none is wider than a line."""
    return f"% {PREAMBLE}\n" + "\n".join(map(_latex, tables))


def _latex(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    sides = "l" * table.labels + "r" * (len(table.header) - table.labels)
    lines = [
        r"\begin{table}",
        r"\centering\small",
        rf"\caption{{{in_latex(table.title)}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{sides}}}",
        r"\toprule",
        line([*map(in_latex, table.header)]),
        r"\midrule",
    ]
    for number, row in enumerate(table.rows):
        texts = [(in_latex(cell.text), cell.bold) for cell in row]
        lines.append(line([rf"\textbf{{{text}}}" if bold else text for text, bold in texts]))
        if number in table.blocks and number + 1 < len(table.rows):
            lines.append(r"\midrule")
    notes = r" \\ ".join(map(in_latex, table.notes))
    lines += [r"\bottomrule", r"\end{tabular}}"]
    if notes:
        lines.append(rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {notes}}}")
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def in_latex(text: str) -> str:
    """Text with its special characters escaped."""
    return "".join(LATEX.get(character, character) for character in text)


def as_csv(tables: Sequence[Table]) -> str:
    """The numbers, unrounded and unscaled: a line for each cell with a metric."""
    records = [{"table": table.title} | record for table in tables for record in table.records]
    names = list(dict.fromkeys(name for record in records for name in record))
    file = io.StringIO()
    writer = csv.DictWriter(file, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        writer.writerow({name: _in_csv(value) for name, value in record.items()})
    return file.getvalue()


def _in_csv(value: Any) -> Any:
    """A value as a field; text that a spreadsheet would take for a formula begins with a quote."""
    if isinstance(value, list):
        value = ";".join(map(str, value))
    return f"'{value}" if isinstance(value, str) and value[:1] in FORMULA else value


def as_json(tables: Sequence[Table]) -> str:
    """The numbers, unrounded and unscaled, and the notes."""
    content = [
        {"title": table.title, "cells": table.records, "notes": table.notes} for table in tables
    ]
    return json.dumps({"tables": content}, indent=1, allow_nan=False) + "\n"
