"""The user's mistakes, as the user should read about them: what was wrong, where, what is right."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

SHOWN = 20
"""Most options that a message lists."""


class UserError(Exception):
    """A mistake that the user can mend.

    The message is all that the user sees: it names what was wrong, where, and what would have been
    right. The command ends with exit status 2 and without a traceback.
    """


def nearest(word: str, options: Iterable[str], *, kind: str = "") -> str:
    """A sentence that helps with a misspelt word: the nearest options, or all of them.

    Args:
        word: what the user wrote.
        options: what would have been right.
        kind: the plural noun for the options, for the sentence that lists them all.
    """
    known = sorted(set(options))
    close = get_close_matches(word, known, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    shown = ", ".join(known[:SHOWN]) + (", ..." if len(known) > SHOWN else "")
    return f"There are {kind}: {shown}." if kind else f"There are {shown}."


def one_line(error: Exception) -> str:
    """What an error of other software says, without its last stop; its kind if it says nothing."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


class RunFailed(Exception):
    """A run that ended without a result; the reason is also in its status. Exit status 1."""
