"""Kaggle through its own package: what a contest offers, its files, and what was submitted to it.

The only module that imports `kaggle`, and only inside functions: the import signs in, and prints a
screen of help, raises or exits where it cannot.

READS   the credentials that the package itself finds (KAGGLE_API_TOKEN, KAGGLE_USERNAME with
        KAGGLE_KEY, files in ~/.kaggle). None of them is printed or stored.

Tested with kaggle 2.2.4. Only public methods and the package's generated client are used, so that
1.7, the last version for Python 3.10, works too; that one does not know what a contest is called,
when it ends, nor how many submissions are left.
"""

from __future__ import annotations

import base64
import importlib
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from src.core.console import InputError, StageError, short
from src.kaggle_io.errors import (
    NotSubmitted,
    RangeNotSatisfiable,
    TransientError,
    bounded_requests,
    not_signed_in,
    pause,
    redact,
    translate,
)

TRIES = 4  # for a request that may work the next time
PAUSE = 1.0  # seconds before the second try, doubled before each further one
LONGEST = 120.0  # seconds; a longer wait that Kaggle asks for (Retry-After) is left to the user
NEEDED = "1.7.4"  # version of the package
PAGES = 25  # of 200 files
METHODS = (
    "build_kaggle_client",
    "competition_list_files",
    "competition_submissions",
    "competition_submit",
    "dataset_list_files",
)
# what the package returns, in place of an error, where the upload failed
NOT_UPLOADED = "Could not submit to competition"


@dataclass(frozen=True)
class Contest:
    """What is not known is None, or ''."""

    slug: str
    title: str
    deadline: datetime | None = None  # UTC
    entered: bool | None = None
    daily: int | None = None  # daily submission limit
    metric: str = ""


@dataclass(frozen=True)
class RemoteSubmission:
    """A submission in Kaggle's list."""

    ref: str
    when: str  # UTC, ISO
    file: str
    message: str
    status: str  # pending, complete, error
    public: float | None = None
    private: float | None = None
    error: str = ""
    user: str = ""


class Mark(BaseModel, extra="forbid", strict=True):
    """What identifies a file's content; None what Kaggle does not tell."""

    etag: str | None
    modified: str | None
    bytes: int | None

    @property
    def identity(self) -> str | None:
        return self.etag or self.modified


@dataclass
class Download:
    """A running download. Iterating gives its bytes from `start` on, and raises ConnectionLost
    where the connection breaks."""

    name: str
    mark: Mark
    md5: str  # of the whole file, base64; '' where Kaggle does not tell
    start: int
    response: Any = field(repr=False)

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self.response.iter_content(1 << 16)
        except Exception as error:
            raise translate(error, "", []) from None
        finally:
            self.response.close()


class Kaggle:
    """Signed in. Every method raises InputError or StageError, in one line that says what to do;
    what may work the next time is tried again first."""

    def __init__(self) -> None:
        self.secrets: list[str] = []
        self.api = self._ask("", _sign_in)
        values = self.api.config_values
        basic = base64.b64encode(f"{values.get('username')}:{values.get('key')}".encode()).decode()
        self.secrets = [text for text in (values.get("key"), values.get("token"), basic) if text]

    def contest(self, slug: str) -> Contest:
        found = self._request(slug, "competition", "get_competition", competition_name=slug)
        if found is None:
            return Contest(slug, slug)
        return Contest(
            slug,
            found.title or slug,
            found.deadline.replace(tzinfo=timezone.utc) if found.deadline else None,
            found.user_has_entered,
            found.max_daily_submissions or None,
            found.evaluation_metric or "",
        )

    def files(self, of: str) -> dict[str, int | None]:
        """name -> bytes of a contest SLUG or a data set OWNER/NAME; {} where there are more than
        5000."""
        ask, listed = self.api.competition_list_files, "files"
        if "/" in of:
            ask, listed = self.api.dataset_list_files, "dataset_files"
        found, token = {}, None
        for _ in range(PAGES):
            page = self._ask(of, lambda token=token: ask(of, page_token=token, page_size=200))
            found |= {f.name: f.total_bytes or None for f in getattr(page, listed)}
            token = page.next_page_token
            if not token:
                return found
        return {}

    def download(self, of: str, start: int = 0, mark: Mark | None = None) -> Download:
        """Everything of a contest SLUG or a data set OWNER/NAME as one file: from byte `start` on
        where it still is the file of this `mark`, else from 0."""
        headers = {"Accept-Encoding": "identity"}
        if start and mark and mark.identity:
            headers |= {"Range": f"bytes={start}-", "If-Range": mark.identity}
        try:
            if "/" in of:
                owner, name = of.split("/")
                asked = {"owner_slug": owner, "dataset_slug": name}
                response = self._request(of, "dataset", "download_dataset", headers, **asked)
            else:
                asked = {"competition_name": of}
                response = self._request(of, "competition", "download_data_files", headers, **asked)
        except RangeNotSatisfiable:
            return self.download(of)
        if response is None:
            raise too_old("cannot download")
        given = response.headers
        part = re.match(r"bytes (\d+)-\d+/(\d+)", given.get("Content-Range", ""))
        length = None if given.get("Content-Encoding") else given.get("Content-Length")
        if part:
            length = part[2]
        now = Mark(
            etag=given.get("ETag"),
            modified=given.get("Last-Modified"),
            bytes=int(length) if length else None,
        )
        as_asked = part and int(part[1]) == start and now == mark
        if response.status_code == 206 and not as_asked:  # If-Range was not heeded
            response.close()
            return self.download(of)
        name = re.search(r'filename="?([^";]+)', given.get("Content-Disposition", ""))
        md5 = re.search(r"md5=([\w+/]+=*)", given.get("x-goog-hash", ""))
        return Download(
            name[1] if name else response.url.split("?")[0].rsplit("/", 1)[-1],
            now,
            md5[1] if md5 else given.get("Content-MD5", ""),
            start if part else 0,
            response,
        )

    def submissions(self, slug: str) -> list[RemoteSubmission]:
        """Newest first, the last hundred at most."""
        ask = self.api.competition_submissions
        found = self._ask(slug, lambda: ask(slug, page_size=100)) or []
        listed = [
            RemoteSubmission(
                str(s.ref),
                s.date.strftime("%Y-%m-%dT%H:%M:%SZ") if s.date else "",
                s.file_name or "",
                s.description or "",
                getattr(s.status, "name", str(s.status)).lower(),
                _number(s.public_score),
                _number(s.private_score),
                " ".join((s.error_description or "").split()),
                s.submitted_by or "",
            )
            for s in found
            if s
        ]
        return sorted(listed, key=lambda s: s.when, reverse=True)

    def remaining(self, slug: str) -> int | None:
        """Submissions left today; None where Kaggle does not tell: to an older package, or, with
        zeros, as long as nobody of the team has submitted anything."""
        ask = getattr(self.api, "competition_get_submission_limits", None)
        found = ask and self._ask(slug, lambda: ask(slug), missing_ok=True)
        if not found or not (found.num_allowed_now or found.num_today or found.num_total):
            return None
        return found.num_allowed_now

    def submit(self, slug: str, file: Path, message: str) -> None:
        """Upload a file and submit it. Returning is not proof of success: look for the entry in
        `submissions`. After NotSubmitted or InputError Kaggle has nothing of it; after any other
        StageError it is not known how far it came."""
        ask = self.api.competition_submit
        printed, quiet = io.StringIO(), not sys.stderr.isatty()
        answer = self._ask(
            slug,
            lambda: ask(str(file), message, slug, quiet=quiet),
            printed=printed,
            repeatable=False,
        )
        if getattr(answer, "message", answer) == NOT_UPLOADED:
            lines = printed.getvalue().splitlines()
            reasons = [t for t in lines if re.search("(?i)error|exception|aborted|refused", t)]
            why = f": {redact(reasons[-1], self.secrets)}" if reasons else ""
            raise NotSubmitted(
                f"the upload of {short(file)} broke off{why}. Nothing was submitted: "
                "run the same command again",
                code="upload_failed",
            )

    def _request(
        self,
        of: str,
        service: str,
        method: str,
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> Any:
        """One request of the package's generated client, for what its public methods do not offer;
        None where this version does not know it. service: competition or dataset."""
        name = f"Api{method.title().replace('_', '')}Request"
        try:
            types = importlib.import_module(f"kagglesdk.{service}s.types.{service}_api_service")
            request = getattr(types, name)()
        except (ImportError, AttributeError):
            return None
        for key, value in fields.items():
            setattr(request, key, value)

        def ask() -> Any:
            with self.api.build_kaggle_client() as client:
                api = getattr(getattr(client, f"{service}s", None), f"{service}_api_client", None)
                return getattr(api, method)(request) if hasattr(api, method) else None

        return self._ask(of, ask, headers=headers)

    def _ask(
        self,
        of: str,
        ask: Callable[[], Any],
        headers: dict[str, str] | None = None,
        printed: io.StringIO | None = None,
        missing_ok: bool = False,
        repeatable: bool = True,
    ) -> Any:
        """What `ask` returns. repeatable: it changes nothing at Kaggle, so that it may be asked
        again where the answer was lost; missing_ok: None in place of a 404."""
        for turn in range(TRIES):
            try:
                with bounded_requests(headers), redirect_stdout(printed or io.StringIO()):
                    return ask()
            except (InputError, StageError):
                raise
            except Exception as error:
                status = getattr(getattr(error, "response", None), "status_code", None)
                if missing_ok and status == 404:
                    return None
                found = translate(error, of, self.secrets)
            if not isinstance(found, TransientError) or not (repeatable or status == 429):
                raise found
            seconds = found.wait or PAUSE * 2**turn
            if turn + 1 == TRIES or seconds > LONGEST:
                raise found
            pause(found, seconds)


def _sign_in() -> Any:
    """The package's KaggleApi, authenticated."""
    # with these it would print every header
    verbose = ("VERBOSE", "VERBOSE_OUTPUT")
    hidden = {name: os.environ.pop(name) for name in verbose if name in os.environ}
    try:
        with redirect_stderr(io.StringIO()):
            from kaggle.api.kaggle_api_extended import KaggleApi

            if lacking := [name for name in METHODS if not hasattr(KaggleApi, name)]:
                raise too_old(f"has no {lacking[0]}")
            api = KaggleApi()
            api.authenticate()
            return api
    except ImportError as error:
        what, todo = f"the package kaggle cannot be imported: {error}", "pip install -U kaggle six"
        raise InputError(what, "", f"Install it with: {todo}", code="no_package") from None
    except SystemExit:
        raise not_signed_in() from None
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in (1, 13, 30):
            what, todo = (
                "the package kaggle cannot use its folder",
                "Name another with KAGGLE_CONFIG_DIR",
            )
            raise InputError(what, error.filename or "", todo, code="no_permission") from None
        # 1.7 without credentials
        if re.match("Could not find kaggle.json|Error: Missing", str(error)):
            raise not_signed_in() from None
        raise
    finally:
        os.environ.update(hidden)


def too_old(lacks: str) -> InputError:
    """The error for a package that lacks something; requirements.txt names the same version."""
    return InputError(
        f"this package kaggle {lacks}",
        "",
        f"Version {NEEDED} or newer is needed: pip install -U 'kaggle>={NEEDED}' six",
        code="kaggle_too_old",
    )


def _number(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
