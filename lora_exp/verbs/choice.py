"""The runs that a verb which changes something is for."""

from __future__ import annotations

from collections.abc import Sequence

from lora_exp.errors import UserError
from lora_exp.runs.selector import Selector


def required(filters: Sequence[str] | None, verb: str) -> Selector:
    """The filter, which must be given.

    Raises:
        UserError: if there is none, or it is no filter.
    """
    selector = Selector.parse(filters or ())
    if not selector:
        raise UserError(
            f"{verb}: say which runs, for example: {verb} grid=NAME, {verb} task=rte seed=1. "
            f"All of them: {verb} 'name=*'"
        )
    return selector
