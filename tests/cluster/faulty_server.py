"""An HTTP proxy on loopback that does to requests what networks and overloaded servers do.

    with FaultyServer(upstream) as server:
        server.faults.append(CutRequest("PUT", after_bytes=3))

Each fault meets the next request of its method whose path holds its text, as often as it says; all others pass.
"""

import http.client
import random
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

ALWAYS = 10**9


@dataclass
class Fault:
    """Which requests are met: a method ("" is any), a text in the path, how many are passed first, and how many met.

    chance: that one which would be met really is.
    """

    method: str = ""
    path: str = ""
    times: int = 1
    skip: int = 0
    chance: float = 1.0

    def meets(self, method: str, path: str) -> bool:
        if self.times < 1 or self.method not in ("", method) or self.path not in path:
            return False
        if self.chance < 1 and random.random() >= self.chance:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        return True


@dataclass
class Answer(Fault):
    """The server answers with an S3 error and does nothing."""

    status: int = 500
    code: str = "InternalError"
    inside: str = ""  # more XML in the error
    headers: Mapping[str, str] | None = None


@dataclass
class CutRequest(Fault):
    """The connection ends when so many bytes of the body have passed."""

    after_bytes: int = 0


@dataclass
class CutAnswer(Fault):
    """The connection ends when so many bytes of the answer's body have passed."""

    after_bytes: int = 0


@dataclass
class LoseAnswer(Fault):
    """The server does what it is asked, and nobody hears of it."""


@dataclass
class AlterRequest(Fault):
    """One byte of the body changes on its way to the server."""

    at: int = 0


@dataclass
class AlterAnswer(Fault):
    """One byte of the answer's body changes on its way back."""

    at: int = 0


@dataclass
class Refuse(Fault):
    """The connection ends before anything was read, as that to a server that is down."""


@dataclass
class Slow(Fault):
    """The answer comes so much later."""

    seconds: float = 1.0


@dataclass
class Stall(Fault):
    """No answer comes before the proxy ends."""


class FaultyServer:
    """The proxy, for the time of a `with` block; `requests` are the methods and paths it has seen.

    Args:
        upstream: URL of the server behind it.
        is_valid: whether the Authorization header of a request is accepted; by default any.
    """

    def __init__(self, upstream: str, is_valid: Callable[[str], bool] | None = None) -> None:
        self.upstream = urlsplit(upstream).netloc
        self.is_valid = is_valid
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fault_of(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path))
            return next((fault for fault in self.faults if fault.meets(method, path)), None)

    def __enter__(self) -> "FaultyServer":
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _altered(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


class _Server(ThreadingHTTPServer):
    request_queue_size = 64  # connections of many threads at once
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Silent: a client that was killed has hung up."""


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultyServer
    protocol_version = "HTTP/1.1"  # answers "Expect: 100-continue" by itself

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silent."""

    def _serve(self) -> None:
        self.close_connection = True
        fault = self.proxy.fault_of(self.command, self.path)
        if isinstance(fault, Refuse):
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.proxy.is_valid is not None and not self.proxy.is_valid(self.headers.get("Authorization", "")):
            fault = Answer(status=400, code="ExpiredToken")
        match fault:
            case Answer():
                self._answer(fault)
            case CutRequest():
                self._forward(body[: fault.after_bytes]).close()
            case LoseAnswer():
                self._exchange(body)
            case AlterRequest():
                self._reply(*self._exchange(_altered(body, fault.at)))
            case AlterAnswer():
                answer, data = self._exchange(body)
                self._reply(answer, _altered(data, fault.at))
            case CutAnswer():
                answer, data = self._exchange(body)
                self._reply(answer, data[: fault.after_bytes])
            case Slow():
                self.proxy.ended.wait(fault.seconds)
                self._reply(*self._exchange(body))
            case Stall():
                self.proxy.ended.wait()
            case _:
                self._reply(*self._exchange(body))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - the names that the library wants

    def _forward(self, body: bytes) -> http.client.HTTPConnection:
        """The head as it came, with the length of the whole body, and as much of the body as given."""
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=60)
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                connection.putheader(name, value)
        connection.endheaders()
        connection.send(body)
        return connection

    def _exchange(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = self._forward(body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer, data

    def _reply(self, answer: http.client.HTTPResponse, data: bytes) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def _answer(self, fault: Answer) -> None:
        data = f"<Error><Code>{fault.code}</Code><Message>said the server</Message>{fault.inside}</Error>".encode()
        self.send_response_only(fault.status)
        for name, value in (fault.headers or {}).items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(0 if self.command == "HEAD" else len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
