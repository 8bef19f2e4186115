"""Credentials of a role that soon expire, handed out on loopback as EKS hands them to its pods."""

import json
import re
import threading
import time
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

LIFETIME_S = 8.0
LEEWAY_S = 4.0  # a request may be on its way when they expire
_BOTO_RENEWS_S = 600.0  # so long before the end boto3 does not use credentials any more


class Credentials:
    """The server, for the time of a `with` block; while `is_down` nobody gets any."""

    def __init__(self) -> None:
        self.is_down = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"credentials": self}))
        self._server.daemon_threads = True

    @property
    def environment(self) -> dict[str, str]:
        """What leads boto3 here."""
        return {"AWS_CONTAINER_CREDENTIALS_FULL_URI": f"http://127.0.0.1:{self._server.server_address[1]}/"}

    def is_valid(self, authorization: str) -> bool:
        """Whether a request that bears this header comes in time."""
        found = re.search(r"Credential=issued(\d+)", authorization)
        return found is not None and time.time() - int(found[1]) / 1000 < LIFETIME_S + LEEWAY_S

    def issue(self) -> dict[str, str]:
        """New ones, of which nobody knows how short they live but by their end."""
        now = time.time()
        end = datetime.fromtimestamp(now + _BOTO_RENEWS_S + LIFETIME_S, UTC)
        return {
            "AccessKeyId": f"issued{int(now * 1000)}",
            "SecretAccessKey": "secret",
            "Token": "token",
            "Expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def __enter__(self) -> "Credentials":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    credentials: Credentials

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silent."""

    def do_GET(self) -> None:
        self.send_response(500 if self.credentials.is_down else 200)
        self.end_headers()
        if not self.credentials.is_down:
            self.wfile.write(json.dumps(self.credentials.issue()).encode())
