"""The HTTP server: which requests are taken, from whom, how large, and what each gets back."""

from __future__ import annotations

import contextlib
import io
import ipaddress
import json
import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ...checks import check_count
from ...errors import ClnnError, ConfigurationError, OutOfDeviceMemory
from .answers import Answers, from_json, from_npy

LIMIT = 16 << 20  # bytes of a body; a drawing has a few thousand
MOST = 64  # connections at a time
PATIENCE = 30  # seconds that a connection may be silent
PAGE = {  # nothing else of any disk is ever read for a request
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
}
JSON, NPY, BYTES = "application/json", "application/x-npy", "application/octet-stream"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
log = logging.getLogger("clnn.serve")


class Refused(Exception):
    """A request that gets an error: its status and words."""

    def __init__(self, status: int, words: str, **headers: str) -> None:
        super().__init__(words)
        self.status, self.headers = status, headers


class Server(ThreadingHTTPServer):
    """A model behind HTTP on this machine: `with Server(net) as server: print(server.url)` answers in other threads, also while
    this one trains the model; `serve_forever()` answers in this one.

    `host` is the address to listen on: by default only this machine reaches it. Port 0 is any free one. ConfigurationError for an
    address that cannot be had, and for what is no model.
    """

    daemon_threads = True
    request_queue_size = MOST

    def __init__(self, model: Any, host: str = "127.0.0.1", port: int = 0, name: str = "model") -> None:
        if (port := check_count("port", port, 0)) > 65535:
            raise ConfigurationError(f"port should be at most 65535, {port} was provided instead")
        self.answers = Answers(model, name)
        self.page = {path: ((files(__package__) / file).read_bytes(), kind) for path, (file, kind) in PAGE.items()}
        self.host, self._thread = host, threading.Thread(target=self.serve_forever, daemon=True)
        self._free = threading.BoundedSemaphore(MOST)
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
                0
            ]
            self.address_family = family
            super().__init__((str(address[0]), port), Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            raise ConfigurationError(
                f"nothing can listen on {host!r}, port {port}: {error}. Another program may have the port: port 0 takes a free "
                "one; the host is a name or an address of this machine"
            ) from None
        self.port: int = self.server_address[1]
        self.local = ipaddress.ip_address(str(self.server_address[0])).is_loopback
        shown = host if ":" not in host else f"[{host}]"
        self.url = f"http://{'localhost' if host in ('0.0.0.0', '::', '') else shown}:{self.port}/"

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()
        with self.answers.model.device.lock:  # a request that is being answered ends before the driver does
            pass

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()  # HTTPServer's own would ask the network for a name

    def process_request(self, request: Any, client: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client)
            return
        with contextlib.suppress(OSError):
            request.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nRetry-After: 1\r\nConnection: close\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client: Any) -> None:
        try:
            super().process_request_thread(request, client)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client: Any) -> None:
        log.debug("a connection broke", exc_info=True)

    def is_own(self, host: str) -> bool:
        """Whether a Host header names this server. A name that a stranger's page has pointed here (DNS rebinding) does not: of
        names only localhost, this machine's and the one that was told are taken; an address needs no name to be pointed."""
        try:
            parts = urlsplit(f"//{host}")
            name, port = (parts.hostname or "").rstrip("."), parts.port or 80
        except ValueError:
            return False
        if port != self.port or parts.username is not None or parts.path or not name:
            return False
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(name)
            return address.is_loopback if self.local else True
        own = {"localhost", self.host.lower()}
        return name in (
            own if self.local else own | {socket.gethostname().lower(), f"{socket.gethostname()}.local".lower()}
        )


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "clnn", ""
    timeout = PATIENCE
    wbufsize = -1
    disable_nagle_algorithm = True
    unread = True

    def handle_expect_100(self) -> bool:
        """Who asks before sending a body is answered at once where it would be refused."""
        try:
            self._length()
        except Refused as error:
            self._refuse(error)
            return False
        return super().handle_expect_100()

    def do_GET(self) -> None:
        self.unread = "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        try:
            if not self.server.is_own(self.headers.get("Host", "")):
                raise Refused(403, f"this server is {self.server.url}, and another host was asked for")
            origin = self.headers.get("Origin")
            if origin is not None and urlsplit(origin).netloc != self.headers["Host"]:
                raise Refused(403, "a page of another site may not ask this server")
            path = self.path.partition("?")[0]
            known = {**dict.fromkeys((*PAGE, "/model"), "GET, HEAD"), "/predict": "POST", "/draw": "POST"}
            if path not in known:
                raise Refused(404, f"there is nothing at this path; there are {', '.join(known)}")
            if self.command not in known[path]:
                raise Refused(405, f"{path} takes {known[path]}, and {self.command} was used", Allow=known[path])
            if self.command == "POST":
                self._send(*self._post(path))
            elif path == "/model":
                self._send(_as_json(self.server.answers.described()), JSON)
            else:
                self._send(*self.server.page[path])
        except Refused as error:
            self._refuse(error)
        except OutOfDeviceMemory as error:
            self._refuse(Refused(503, f"{error}"))
        except ClnnError as error:
            self._refuse(Refused(400, f"{error}"))
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception as error:  # a model of one's own may raise anything: the next request is another matter
            log.exception("a request failed")
            self._refuse(Refused(500, f"the model failed: {type(error).__name__}: {error}"))

    do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_GET

    def _post(self, path: str) -> tuple[bytes, str]:
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        takes = (JSON, NPY) if path == "/predict" else (BYTES,)
        if kind not in takes:
            raise Refused(415, f"{path} takes the Content-Type {' or '.join(takes)}, and {kind or 'none'} was given")
        body = self._body()
        answers = self.server.answers
        if path == "/draw":
            return _as_json(answers.draw(body)), JSON
        x = from_json(body) if kind == JSON else from_npy(body)
        accept = self.headers.get("Accept", "*/*").lower()
        if NPY in accept or (kind == NPY and JSON not in accept):
            file = io.BytesIO()
            np.save(file, answers.outputs(x), allow_pickle=False)
            return file.getvalue(), NPY
        return _as_json(answers.predict(x)), JSON

    def _length(self) -> int:
        """What the request says that its body has."""
        given = self.headers.get_all("Content-Length", [])
        if "Transfer-Encoding" in self.headers or len(given) != 1 or not (given[0].isascii() and given[0].isdigit()):
            raise Refused(411, "a request has one Content-Length, and no Transfer-Encoding")
        if len(given[0]) > 12 or int(given[0]) > LIMIT:
            raise Refused(413, f"a body has at most {LIMIT:,} bytes: send the samples in several requests")
        return int(given[0])

    def _body(self) -> bytes:
        length = self._length()
        body = self.rfile.read(length)
        if len(body) < length:
            raise Refused(400, f"the body ended after {len(body):,} of {length:,} bytes")
        self.unread = False
        return body

    def _send(self, body: bytes, kind: str, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {
            **HEADERS,
            **(headers or {}),
            "Content-Type": kind,
            "Content-Length": f"{len(body)}",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, error: Refused) -> None:
        """The error as JSON. Where a body has not been read the connection ends with it; what the client still sends is read
        and dropped for a while, or it would see a broken connection instead of these words."""
        with contextlib.suppress(OSError):
            closing = {"Connection": "close"} if self.unread else {}
            self._send(_as_json({"error": f"{error}"}), JSON, error.status, {**error.headers, **closing})
            self.wfile.flush()
            if self.unread:
                self.connection.shutdown(socket.SHUT_WR)
                self.connection.settimeout(0.5)
                end, left = time.monotonic() + 5, 4 * LIMIT
                while left > 0 and time.monotonic() < end and (got := len(self.connection.recv(1 << 16))):
                    left -= got

    def log_message(self, words: str, *values: Any) -> None:
        log.info("%s %s", self.address_string(), words % values)


def _as_json(value: Any) -> bytes:
    return json.dumps(value, allow_nan=False).encode()
