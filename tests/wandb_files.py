"""Read what W&B keeps of a run on this machine, without its help."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any


def stored(file: Path) -> list[Any]:
    """The records of a `.wandb` file: a LevelDB log, 7 bytes of header, blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore

    data, position, records, pending = file.read_bytes(), 7, [], b""
    assert data[:4] == b":W&B"
    while position < len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        pending += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full or last
            records.append(Record.FromString(pending))
            pending = b""
    assert not pending
    return records


def values(items: Any) -> dict[str, Any]:
    """Names and values of W&B's items, without its own, which begin with an underscore."""
    named = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
    return {name: value for name, value in named.items() if not name.startswith("_")}


def history(records: list[Any]) -> dict[int, dict[str, Any]]:
    return {r.history.step.num: values(r.history.item) for r in records if r.HasField("history")}


def summary(records: list[Any]) -> dict[str, Any]:
    """The run's summary as it stands at the end."""
    items: dict[str, Any] = {}
    for record in records:
        items |= values(record.summary.update)
    return items
