"""TensorBoard: `outputs/tensorboard/RUN/`, event files that `tensorboard --logdir` reads.

Written with TensorBoard's own writer, without torch and TensorFlow.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from lora_exp.runs.config import TrackerConfig
from lora_exp.runs.values import flat
from lora_exp.track import Line, RunInfo

FLUSH_SECONDS = 10
"""Points are seen after so long; those younger are lost with a process that is killed."""


def start(tracker: TrackerConfig, info: RunInfo) -> EventFile:
    """A new event file in the run's folder."""
    return EventFile(info)


class EventFile:
    """One attempt of a run. It takes back what attempts before it wrote of its steps: TensorBoard
    shows each step once."""

    def __init__(self, info: RunInfo) -> None:
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._events, self._summaries = _messages("compat.proto.event", "compat.proto.summary")
        self._writer = EventFileWriter(
            str(info.outputs / "tensorboard" / info.name), flush_secs=FLUSH_SECONDS
        )
        self._last: int | None = None  # step
        config = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in flat(info.config)
        }
        # Seeds of a group are one row of its table of hyperparameters.
        self._add(hparams_pb(config, trial_id=info.group or info.signature))

    def log(self, lines: Sequence[Line]) -> int:
        """Each value is a point of a curve."""
        for step, values in lines:
            if self._last is None:
                session = self._events.SessionLog
                self._write(step=step, session_log=session(status=session.START))
            points = {k: v for k, v in values.items() if k != "epoch" or step != self._last}
            self._last = step
            self._add_points(points, step)
        return len(lines)

    def finish(self, state: str, summary: dict[str, float]) -> None:
        """The result is a point at the last step: `result/accuracy`."""
        from tensorboard.plugins.hparams import metadata

        self._add_points({f"result/{k}": v for k, v in summary.items()}, self._last or 0)
        api, plugin = _messages("plugins.hparams.api", "plugins.hparams.plugin_data")
        status = api.STATUS_SUCCESS if state == "done" else api.STATUS_FAILURE
        ended = plugin.SessionEndInfo(status=status, end_time_secs=time.time())
        data = plugin.HParamsPluginData(session_end_info=ended)
        end = self._summaries.Summary()
        end.value.add(
            tag=metadata.SESSION_END_INFO_TAG,
            tensor=metadata.NULL_TENSOR,
            metadata=metadata.create_summary_metadata(data),
        )
        self._add(end)
        self._writer.close()

    def _add_points(self, values: Mapping[str, float], step: int) -> None:
        summary = self._summaries.Summary
        points = [summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(summary(value=points), step)

    def _add(self, summary: Any, step: int = 0) -> None:
        self._write(step=step, summary=summary)

    def _write(self, **content: Any) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), **content))


def _messages(*names: str) -> list[Any]:
    """Modules of protocol buffers; their classes are made when they are imported."""
    return [import_module(f"tensorboard.{name}_pb2") for name in names]
