"""As much of W&B's server as lora_exp needs, on this machine."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Stored:
    """What the server knows of a run."""

    upserts: list[dict[str, Any]] = field(default_factory=list)
    """The variables of each request to make or change it."""
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By step."""
    lines: int = 0
    """How many lines of history have arrived, those of the same step counted again."""
    summary: dict[str, Any] = field(default_factory=dict)
    stream: dict[str, Any] = field(default_factory=dict)
    """What else was said of it: `preempting`, `complete`, `exitcode`."""


class Server(ThreadingHTTPServer):
    """Keeps what is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        self.runs: dict[str, Stored] = {}
        self.views: dict[str, dict[str, Any]] = {}
        """Saved workspaces and reports, by id."""
        self.refused = ""
        """A query of which it says that it has an error."""
        self.unknown: list[str] = []
        """Queries that it has no answer to."""
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving() -> Iterator[Server]:
    """A server at work."""
    with Server() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class Answer(BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or "{}")
        errors: dict[str, Any] = {}
        if self.path.endswith("/file_stream"):
            self._stream(self.path.split("/")[-2], body)
            data: dict[str, Any] = {}
        else:
            query = body.get("query", "")
            data = self._query(query, body.get("variables") or {})
            if self.server.refused and self.server.refused in query:
                data, errors = {}, {"errors": [{"message": "permission denied"}]}
        answer = json.dumps({"data": data} | errors).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _stream(self, name: str, body: dict[str, Any]) -> None:
        run = self.server.runs.setdefault(name, Stored())
        files = body.get("files", {})
        for line in files.get("wandb-history.jsonl", {}).get("content", []):
            item = json.loads(line)
            run.lines += 1
            run.history[item["_step"]] = {k: v for k, v in item.items() if not k.startswith("_")}
        for line in files.get("wandb-summary.json", {}).get("content", []):
            run.summary |= {k: v for k, v in json.loads(line).items() if not k.startswith("_")}
        run.stream |= body

    def _query(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        owner = {"id": "1", "name": "p", "entity": {"id": "1", "name": "me"}}
        if "query GetProjects" in query:
            project = {"__typename": "Project", "id": "1", "name": "p", "entityName": "me"}
            project |= {"createdAt": "2026-01-01T00:00:00Z", "isBenchmark": False, "user": None}
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"models": {"pageInfo": page, "edges": [{"node": project}]}}
        if "viewer {" in query:
            who = {"id": "1", "entity": "me", "username": "me", "email": "", "flags": "{}"}
            return {"viewer": who | {"teams": {"edges": []}}}
        if "UpsertBucket" in query:
            name = variables["name"]
            self.server.runs.setdefault(name, Stored()).upserts.append(variables)
            run = {"id": "1", "name": name, "displayName": name, "config": "{}", "project": owner}
            return {"upsertBucket": {"bucket": run, "inserted": False}}
        if "CreateRunFiles" in query:
            return {"createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []}}
        if "RunResumeStatus" in query:
            return {"model": {**owner, "bucket": self._resumed(variables["name"])}}
        if "upsertView" in query:
            number = variables.get("id") or _id(len(self.server.views))
            self.server.views[number] = variables | {"id": number}
            return {"upsertView": {"view": self._view(number), "inserted": True}}
        if "ProjectInternalId" in query:
            return {"project": {"id": "1", "internalId": "1"}}
        if "allViews" in query:
            named = [n for n, v in self.server.views.items() if v["name"] == variables["viewName"]]
            edges = [{"node": self._view(number)} for number in named]
            return {"project": {"allViews": {"edges": edges}}}
        if "query SpecificReport" in query:
            known = variables["reportId"] in self.server.views
            return {"view": self._view(variables["reportId"]) if known else None}
        self.server.unknown.append(query)
        return {}

    def _view(self, number: str) -> dict[str, Any]:
        view = self.server.views[number]
        project = {"id": "1", "name": "p", "entityName": "me"}
        now = "2026-01-01T00:00:00Z"
        return view | {"project": project, "createdAt": now, "updatedAt": now}

    def _resumed(self, name: str) -> dict[str, Any] | None:
        run = self.server.runs.get(name)
        if run is None or not run.history:
            return None
        last = json.dumps({"_step": max(run.history), "_runtime": 1} | run.summary)
        return {
            "id": "1",
            "name": name,
            "displayName": name,
            "config": "{}",
            "summaryMetrics": last,
            "historyTail": json.dumps([last]),
            "eventsTail": "[]",
            "historyLineCount": len(run.history),
            "eventsLineCount": 0,
            "logLineCount": 0,
            "tags": [],
            "wandbConfig": '{"t": 1}',
        }


def _id(number: int) -> str:
    """As W&B makes them; those of reports stand in their addresses."""
    return base64.b64encode(f"View:{number:03}".encode()).decode()
