"""The page as one HTML file that asks nobody for anything: style, scripts and data are inside."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from functools import cache
from pathlib import Path

from lora_exp.report.page.content import Content

FOLDER = Path(__file__).parent
LIBRARY = "chart.umd.js"
SCRIPTS = (
    "dom.js",
    "words.js",
    "palette.js",
    "table.js",
    "charts.js",
    "parallel.js",
    "details.js",
    "page.js",
)
"""In this order: each knows the names of those before it."""


def document(content: Content, refresh_seconds: float | None = None) -> str:
    """The page.

    Args:
        content: what it shows.
        refresh_seconds: how often a page that is served asks for new content; None: it is a file,
            and its policy forbids to ask anybody for anything.
    """
    style, scripts = _read("page.css"), [_library(), *map(_read, SCRIPTS)]
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(map(_digest, scripts)),
        "style-src": _digest(style),
        "connect-src": "'none'" if refresh_seconds is None else "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    parts = {
        "policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "title": html.escape(content.title),
        "refresh": "" if refresh_seconds is None else f"{refresh_seconds:g}",
        "style": f"<style>{style}</style>",
        "content": content.json(),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda name: parts[name[1]], _read("page.html"))


@cache
def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


@cache
def _library() -> str:
    """With its licence, and without the comment that makes browsers ask for a source map."""
    code = _read(LIBRARY).partition("//# sourceMappingURL")[0]
    return f"/*\n{_read('chart.LICENSE.txt')}*/\n{code}"


def _digest(text: str) -> str:
    """As a Content-Security-Policy names what may stand in a page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
