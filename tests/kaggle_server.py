"""A stand-in for Kaggle on this machine: it speaks the protocol of the `kaggle` package (2.2.4),
and breaks off, slows down or refuses where a test asks for it.

The package is pointed at it by the environment (`environment`): KAGGLE_API_ENVIRONMENT=LOCALHOST
makes it call http://localhost/api/v1/<service>/<request> (POST, JSON), and http_proxy brings every
such call here, and those of the redirects to http://storage.test (GET with Range) and
http://upload.test (PUT, resumable) too. Nothing reaches a real network: https is proxied here as
well, and refused."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep
from urllib.parse import urlsplit

import pytest
from kaggle_endpoints import KEY, TOKEN, USER, Contest, Endpoints, Files, Refused, make_zip

SECRETS = (KEY, TOKEN, base64.b64encode(f"{USER}:{KEY}".encode()).decode(), "the-signature")
CLEARED = (
    "KAGGLE_USERNAME",
    "KAGGLE_KEY",
    "KAGGLE_API_TOKEN",
    "KAGGLE_CONFIG_DIR",
    "KAGGLE_PROXY",
    "KAGGLE_KERNEL_RUN_TYPE",
    "XDG_CONFIG_HOME",
    "NO_PROXY",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "all_proxy",
    "VERBOSE",
    "VERBOSE_OUTPUT",
)
__all__ = [
    "CLEARED",
    "KEY",
    "SECRETS",
    "TOKEN",
    "USER",
    "Contest",
    "Fault",
    "Files",
    "KaggleServer",
    "Seen",
    "ago",
    "enter",
    "make_zip",
    "server",
]
MODIFIED = "Wed, 01 Jul 2026 12:00:00 GMT"


@dataclass
class Fault:
    """What goes wrong at one endpoint, `times` times (None: always)."""

    status: int | None = None
    message: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None  # the connection breaks after so many bytes of the body
    slow: float = 0  # seconds before each chunk of the body
    hang: float = 0  # seconds before anything is answered
    longer: int = 0  # Content-Length claims so many bytes more
    damage: bool = False  # one byte of the body is another
    times: int | None = None


@dataclass
class Seen:
    """A request as it came in; credentials are replaced by '***'."""

    endpoint: str
    method: str
    url: str
    headers: dict[str, str]
    body: dict
    sent: int = 0  # bytes of the answer's body that went out


class Quiet(ThreadingHTTPServer):
    """Says nothing of a client that hung up, which would stand among a command's own words."""

    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class KaggleServer:
    """As a context manager. `add`, `add_dataset` and `fault` say what there is and what goes wrong;
    `seen` holds every request."""

    def __init__(self) -> None:
        self.contests: dict[str, Contest] = {}
        self.datasets: dict[str, Files] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.seen: list[Seen] = []
        self.blobs: dict[str, bytearray] = {}
        self.names: dict[str, str] = {}  # of the blobs
        self.chunk = 16384
        self.lock = threading.Lock()

    def __enter__(self) -> KaggleServer:
        handler = type("BoundHandler", (Handler,), {"kaggle": self})
        self.http = Quiet(("127.0.0.1", 0), handler)
        threading.Thread(
            target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        return self

    def __exit__(self, *_) -> None:
        self.http.shutdown()
        self.http.server_close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.http.server_address[1]}"

    def environment(self, home: object, how: str = "key") -> dict[str, str]:
        """The variables that lead the package here; `how` it signs in: key, token or none. CLEARED
        are to be removed first."""
        signed = {
            "key": {"KAGGLE_USERNAME": USER, "KAGGLE_KEY": KEY},
            "token": {"KAGGLE_API_TOKEN": TOKEN},
            "none": {},
        }[how]
        return {
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "http_proxy": self.address,
            "https_proxy": self.address,
            "HOME": str(home),
        } | signed

    def add(self, slug: str, files: dict[str, bytes] | None = None, **more) -> Contest:
        self.contests[slug] = Contest(files=files or {}, **more)
        return self.contests[slug]

    def add_dataset(self, name: str, files: dict[str, bytes], **more) -> Files:
        self.datasets[name] = Files(files=files, **more)
        return self.datasets[name]

    def fault(self, endpoint: str, status: int | None = None, **what) -> Fault:
        """`endpoint`: a request's name (GetCompetition, ListDataFiles, DownloadDataFiles,
        DownloadDataset, StartSubmissionUpload, CreateSubmission, ListSubmissions,
        GetSubmissionLimits, IntrospectToken, …), Storage (the files' bytes) or Upload. Faults of
        one endpoint follow each other."""
        self.faults.setdefault(endpoint, []).append(Fault(status, **what))
        return self.faults[endpoint][-1]

    def asked(self, endpoint: str) -> list[Seen]:
        return [s for s in self.seen if s.endpoint == endpoint]

    def next_fault(self, endpoint: str) -> Fault:
        with self.lock:
            for fault in self.faults.get(endpoint, []):
                if fault.times is None or fault.times > 0:
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return Fault()


class Handler(Endpoints, BaseHTTPRequestHandler):
    kaggle: KaggleServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.begin("CONNECT")
        self.answer(502, b"no real network here")

    def do_POST(self) -> None:
        name = urlsplit(self.path).path.rpartition("/")[2]
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = json.loads(raw or b"{}")
        self.begin(name, {k: "***" if k == "token" else v for k, v in body.items()})
        if self.fault.status:
            return self.refuse(self.fault.status, self.fault.message or "Something went wrong")
        try:
            if name != "IntrospectToken" and self.headers.get("Authorization") not in (
                f"Bearer {TOKEN}",
                f"Basic {SECRETS[2]}",
            ):
                raise Refused(401, "Unauthenticated")
            found = getattr(self, name, None)
            if found is None or not urlsplit(self.path).path.startswith("/api/v1/"):
                raise Refused(404, f"no such endpoint: {name}")
            reply = found(body)
        except Refused as refused:
            return self.refuse(refused.status, str(refused))
        if isinstance(reply, str):
            return self.answer(302, b"", {"Location": reply})
        self.answer(200, json.dumps(reply).encode(), {"Content-Type": "application/json"})

    def do_GET(self) -> None:
        """A file's bytes, as the storage behind a redirect sends them."""
        self.begin("Storage")
        if self.fault.status:
            return self.refuse(self.fault.status, self.fault.message or "Something went wrong")
        kind, _, rest = urlsplit(self.path).path.strip("/").partition("/")
        owner, _, name = rest.rpartition("/")
        holder = (self.kaggle.contests if kind == "contest" else self.kaggle.datasets)[
            owner.partition(":")[0]
        ]
        data = holder.files[owner.partition(":")[2]] if ":" in owner else holder.zipped()
        digest = hashlib.md5(data)
        tag = f'"{digest.hexdigest()}"'
        headers = {
            "ETag": tag,
            "Last-Modified": MODIFIED,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/zip",
            "x-goog-hash": f"md5={base64.b64encode(digest.digest()).decode()}",
        }
        if self.fault.damage:
            data = (
                data[: len(data) // 2]
                + bytes([data[len(data) // 2] ^ 255])
                + data[len(data) // 2 + 1 :]
            )
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and self.headers.get("If-Range", tag) in (tag, MODIFIED):
            start = int(wanted[1])
            if start >= len(data):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            return self.answer(
                206,
                data[start:],
                headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"},
            )
        self.answer(200, data, headers)

    def do_PUT(self) -> None:
        """An upload, resumable as Google's storage has it."""
        self.begin("Upload")
        blob = self.kaggle.blobs.setdefault(
            urlsplit(self.path).path.rpartition("/")[2], bytearray()
        )
        length = int(self.headers.get("Content-Length") or 0)
        if re.fullmatch(r"bytes \*/\d+", self.headers.get("Content-Range", "")):
            return self.answer(308, b"", {"Range": f"bytes=0-{len(blob) - 1}"} if blob else {})
        if not self.headers.get("Content-Range"):
            blob.clear()
        if self.fault.cut is not None:
            blob += self.rfile.read(min(self.fault.cut, length))
            return self.hang_up()
        while length:
            sleep(self.fault.slow)
            piece = self.rfile.read(min(self.kaggle.chunk, length))
            blob += piece
            length -= len(piece)
        self.answer(self.fault.status or 200, b"{}")

    # ------------------------------------------------------------------------------ answering

    def begin(self, endpoint: str, body: dict | None = None) -> None:
        headers = {
            k: "***" if k.lower() in ("authorization", "cookie", "proxy-authorization") else v
            for k, v in self.headers.items()
        }
        self.record = Seen(endpoint, self.command, self.path, headers, body or {})
        self.kaggle.seen.append(self.record)
        self.fault = self.kaggle.next_fault(endpoint)
        sleep(self.fault.hang)

    def refuse(self, status: int, message: str) -> None:
        self.answer(
            status,
            json.dumps({"code": status, "message": message}).encode(),
            {"Content-Type": "application/json"} | self.fault.headers,
        )

    def answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (
            {"Content-Type": "text/plain"}
            | (headers or {})
            | {"Content-Length": str(len(data) + self.fault.longer)}
        ).items():
            self.send_header(key, value)
        self.end_headers()
        data = data if self.fault.cut is None else data[: self.fault.cut]
        try:
            for at in range(0, len(data), self.kaggle.chunk):
                sleep(self.fault.slow)
                self.wfile.write(piece := data[at : at + self.kaggle.chunk])
                self.record.sent += len(piece)
        except OSError:  # the client hung up
            self.close_connection = True
        if self.fault.cut is not None or self.fault.longer:
            self.hang_up()

    def hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(2)


def ago(**how: float) -> datetime:
    """A deadline that has passed, for example ago(days=1)."""
    return datetime.now(timezone.utc).replace(tzinfo=None) - timedelta(**how)


def enter(monkeypatch, server: KaggleServer, home: object, how: str = "key") -> None:
    """Point the package at the server, in this process: nothing of the machine's own credentials is
    ever looked at."""
    for name in CLEARED:
        monkeypatch.delenv(name, raising=False)
    for name, value in server.environment(home, how).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A running server, and an environment in which the `kaggle` package signs in there with a
    key."""
    with KaggleServer() as running:
        (home := tmp_path / "home").mkdir()
        enter(monkeypatch, running, home)
        yield running
