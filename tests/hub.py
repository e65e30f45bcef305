"""A Hugging Face hub on this machine: enough of its HTTP interface to download and to upload.

It serves folders as repositories, `FOLDER/models/ORGANISATION/NAME/...` and
`FOLDER/datasets/ORGANISATION/NAME/...`, each with one commit. As on the real hub a file is found by
a HEAD request whose headers carry the commit and the content's hash, folders are listed under
`/api`, and the header X-Error-Code tells a missing file from a missing repository. Whoever writes
needs TOKEN; what he makes private has a file `.private` here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_secretsecretsecretsecretsecret"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

REVISION = r"(?:refs/convert/parquet|[^/]+)"
RESOLVE = re.compile(rf"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/{REVISION}/(?P<path>.+)")
API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<repo>[^/]+/[^/]+)"
    rf"(?:/(?P<verb>revision|tree|paths-info|preupload|commit)/{REVISION}(?:/(?P<path>.*))?)?"
)

GLUE_CARD = """---
configs:
- config_name: rte
  data_files:
  - split: train
    path: rte/train-*
  - split: validation
    path: rte/validation-*
dataset_info:
- config_name: rte
  features:
  - name: sentence1
    dtype: string
  - name: sentence2
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': entailment
          '1': not_entailment
  - name: idx
    dtype: int32
---
"""


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder of repositories; gives the address, for HF_ENDPOINT."""

    class Handler(_Handler):
        root = folder

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def nowhere() -> str:
    """An address at which nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def environment(endpoint: str, home: Path) -> dict[str, str]:
    """The environment of a process for which `endpoint` is the hub and `home` its cache."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "TRANSFORMERS_")) and not name.lower().endswith("_proxy")
    }
    return kept | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    }


def write_glue(repo: Path, rows: dict[str, list[tuple[str, str, int]]]) -> None:
    """A data set repository like nyu-mll/glue, of RTE alone, with two shards for each split."""
    import pyarrow
    from pyarrow import parquet

    folder = repo / "rte"
    folder.mkdir(parents=True)
    (repo / "README.md").write_text(GLUE_CARD)
    for split, examples in rows.items():
        first, second, labels = zip(*examples, strict=True)
        table = pyarrow.table(
            {
                "sentence1": first,
                "sentence2": second,
                "label": pyarrow.array(labels, pyarrow.int64()),
                "idx": pyarrow.array(range(len(labels)), pyarrow.int32()),
            }
        )
        for shard, start, stop in ((0, 0, 1), (1, 1, len(examples))):
            path = folder / f"{split}-{shard:05}-of-00002.parquet"
            parquet.write_table(table.slice(start, stop - start), path)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := RESOLVE.fullmatch(path):
            repo = self.root / ("datasets" if match["kind"] else "models") / match["repo"]
            self._send_file(repo, match["path"])
        elif match := API.fullmatch(path):
            self._send_information(match)
        else:
            self._send(200 if path == "/" else 404, b"")

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        lines = [json.loads(line) for line in content.splitlines()]
        body, path = lines[0], unquote(urlsplit(self.path).path)
        match = API.fullmatch(path)
        if path == "/api/validate-yaml":
            self._send_json({"errors": [], "warnings": []})
        elif path == "/api/repos/create" or (match and match["verb"] in ("preupload", "commit")):
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self._send(401, b'{"error": "Invalid credentials"}')
            elif match:
                self._write(match, body, lines[1:])
            else:
                self._create(body)
        elif match and match["verb"] == "paths-info":
            repo = self.root / match["kind"] / match["repo"]
            wanted = [repo / path for path in body["paths"]]
            self._send_json([_entry(repo, path) for path in wanted if path.exists()])
        else:
            self._send(404, b"")

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        repo = self.root / "models" / name
        repo.mkdir(parents=True, exist_ok=True)
        if asked.get("visibility") == "private":
            (repo / ".private").touch()
        self._send_json({"url": f"http://{self.headers['Host']}/{name}", "name": name})

    def _write(self, match: re.Match[str], asked: Any, operations: list[Any]) -> None:
        """A commit; every file comes in it as a whole, none through LFS."""
        if match["verb"] == "preupload":
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            self._send_json({"files": [{"path": f["path"]} | modes for f in asked["files"]]})
            return
        for operation in operations:
            file = self.root / match["kind"] / match["repo"] / operation["value"]["path"]
            file.write_bytes(base64.b64decode(operation["value"]["content"]))
        url = f"http://{self.headers['Host']}/{match['repo']}/commit/{COMMIT}"
        self._send_json({"commitUrl": url, "commitOid": COMMIT})

    def _send_file(self, repo: Path, name: str) -> None:
        if not repo.is_dir():
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif not (repo / name).is_file():
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        else:
            content = (repo / name).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _send_information(self, match: re.Match[str]) -> None:
        repo = self.root / match["kind"] / match["repo"]
        if not repo.is_dir():
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif match["verb"] == "tree":
            folder = repo / (match["path"] or "")
            recursive = "recursive=true" in self.path.lower()
            found = sorted(folder.rglob("*") if recursive else folder.glob("*"))
            self._send_json([_entry(repo, path) for path in found])
        else:
            files = sorted(path for path in repo.rglob("*") if path.is_file())
            siblings = [{"rfilename": path.relative_to(repo).as_posix()} for path in files]
            self._send_json({"id": match["repo"], "sha": COMMIT, "siblings": siblings})

    def _send_json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: the tests look at what the client does."""


def _entry(repo: Path, path: Path) -> dict[str, Any]:
    """What the hub tells of a file or folder of a repository."""
    name = path.relative_to(repo).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": COMMIT, "size": 0}
    identity = hashlib.sha1(path.read_bytes()).hexdigest()
    return {"type": "file", "path": name, "oid": identity, "size": path.stat().st_size}
