"""The page served on this machine, with new content as runs go on."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lora_exp.errors import UserError
from lora_exp.report.page.content import Content
from lora_exp.report.page.document import document

HOST, PORT = "127.0.0.1", 8417
"""The port is another one where this is taken."""
REFRESH_SECONDS = 2.0
SHARE = 0.25
"""Most of the time that is spent on looking at the runs."""

log = logging.getLogger("lora_exp")


class Server(ThreadingHTTPServer):
    """`/` is the page, `/content.json` what it shows, for a browser of this machine alone."""

    daemon_threads = True

    def __init__(self, content: Content) -> None:
        self.show(content)
        try:
            super().__init__((HOST, PORT), _Handler)
        except OSError:
            super().__init__((HOST, 0), _Handler)
        self.address = f"http://{HOST}:{self.server_port}"
        self.hosts = {f"{name}:{self.server_port}" for name in (HOST, "localhost")}

    def show(self, content: Content) -> None:
        """From now on this is the page."""
        same = replace(content, written="").json().encode()
        tag = f'"{hashlib.sha256(same).hexdigest()[:16]}"'
        self.shown = content, tag


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        content, tag = server.shown
        # Another site may give its name our address; its pages must not read what is here.
        if self.headers.get("Host") not in server.hosts:
            self._answer(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            page = document(content, REFRESH_SECONDS)
            self._answer(HTTPStatus.OK, page, "text/html; charset=utf-8")
        elif self.path != "/content.json":
            self._answer(HTTPStatus.NOT_FOUND)
        elif self.headers.get("If-None-Match") == tag:
            self._answer(HTTPStatus.NOT_MODIFIED)
        else:
            self._answer(HTTPStatus.OK, content.json(), "application/json", tag)

    def _answer(self, status: HTTPStatus, text: str = "", kind: str = "", tag: str = "") -> None:
        body = text.encode()
        self.send_response(status)
        if status != HTTPStatus.NOT_MODIFIED:
            self.send_header("Content-Length", str(len(body)))
        headers = {"Content-Type": kind, "ETag": tag, "Cache-Control": "no-store"}
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal is not for this."""


@contextmanager
def serving(content: Content) -> Iterator[Server]:
    """The server, for as long as the context lasts."""
    server = Server(content)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def follow(look: Callable[[], Content], server: Server) -> None:
    """Look at the runs again and again, and show how they stand, until Ctrl-C."""
    warned = ""
    while True:
        began = time.monotonic()
        try:
            server.show(look())
            warned = ""
        except OSError:
            pass  # a run was just moved away: next time
        except UserError as error:  # such as that no run is meant any more; others may come
            if (told := str(error)) != warned:
                log.warning("The page stays as it is. %s", told)
            warned = told
        took = time.monotonic() - began
        time.sleep(max(REFRESH_SECONDS, took / SHARE - took))
