"""Kaggle by way of its own package: what a contest offers, its files, what was handed in. The only module that imports `kaggle`, and only inside functions:
its import signs in, and prints a screen of help, raises or exits where it cannot.

READS   the credentials that the package itself finds (KAGGLE_API_TOKEN, KAGGLE_USERNAME with KAGGLE_KEY, files in ~/.kaggle). Prints and stores none of them.

Tested with kaggle 2.2.4. Only public methods and the package's generated client are used, so that 1.7, the last one for Python 3.10, serves too; it does not
say what a contest is called, when it ends, nor how many submissions are left.
"""

from __future__ import annotations

import base64
import importlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from src.core.console import InputError, StageError, duration, short, warn
from src.kaggle_io.errors import (
    SITE,
    ConnectionLost,
    NotSubmitted,
    RangeNotSatisfiable,
    ServerBusy,
    TransientError,
    bounded_requests,
    not_signed_in,
    redact,
    translate,
    url,
)

if TYPE_CHECKING:
    import argparse

    from src.config.load import Config
    from src.core.paths import Paths

__all__ = [
    "Download",
    "ServerBusy",
    "Contest",
    "Kaggle",
    "ConnectionLost",
    "NotSubmitted",
    "RemoteFile",
    "RemoteSubmission",
    "plain_dataset",
    "plain_slug",
    "slug_of",
    "url",
]
TRIES = 4  # of what may go better the next time
PAUSE = 1.0  # seconds before the second try, doubled before each further one
LONGEST = 120.0  # seconds; where Kaggle asks for more (Retry-After) the user is told instead
NEEDED = "1.7.4"  # of the package
PAGES = 25  # of 200 files
NOT_UPLOADED = "Could not submit to competition"  # what the package returns, in place of an error, where the upload failed


@dataclass(frozen=True)
class Contest:
    """Unknown is None, or ''."""

    slug: str
    title: str
    url: str
    deadline: datetime | None = None  # UTC
    entered: bool | None = None
    daily: int | None = None  # submissions a day
    metric: str = ""


@dataclass(frozen=True)
class RemoteFile:
    name: str
    bytes: int | None


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
    team: str = ""


@dataclass
class Download:
    """A file on its way; iterate over it for its bytes from `start` on. Raises ConnectionLost where the connection breaks off."""

    name: str
    mark: dict[
        str, Any
    ]  # etag, modified, bytes; None what is not said. Of the same mark, the same bytes
    md5: str  # of the whole file, base64; '' where it is not said
    start: int
    response: Any = field(repr=False)

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self.response.iter_content(1 << 16)
        except Exception as error:
            raise translate(error, "", []) from None
        finally:
            self.response.close()


def slug_of(given: argparse.Namespace, config: Config, paths: Paths) -> str:
    """The contest: --competition, else slug in competition.yaml, else the one whose files are in the data folder. Raises InputError where none is named."""
    fetched = ""
    if paths.fetched.is_file():
        try:
            fetched = json.loads(paths.fetched.read_text(encoding="utf-8"))["competition"]
            fetched = fetched if isinstance(fetched, str) else ""
        except (OSError, ValueError, RecursionError, KeyError, TypeError):
            pass  # damaged: as good as nothing
    for text, where in (
        (given.competition, "--competition"),
        (config.competition.slug, "slug in competition.yaml"),
        (fetched, short(paths.fetched)),
    ):
        if text:
            return plain_slug(text, where)
    raise InputError(
        "no contest is named",
        "neither by --competition, nor by slug: in competition.yaml, nor by "
        f"{short(paths.fetched)}",
        f"Name it by --competition SLUG, the last word of its address, {SITE}/competitions/<slug>",
        code="no_contest_named",
    )


def plain_slug(text: str, where: str = "--competition") -> str:
    """'SLUG' of SLUG or of the address of a page; raises InputError for an invitation or anything else."""
    address = re.sub(r"^(https?://)?(www\.)?kaggle\.com/", "", text.strip(), flags=re.I)
    word = re.sub(r"^(competitions|c)/", "", address) if address != text.strip() else address
    if re.match(r"(t|competitions/invite)/", address) or re.fullmatch(r"[0-9a-f]{32,}", word):
        raise InputError(
            f"an invitation is no slug: {text}",
            where,
            "Open it in a browser, join the contest, and take the last word of its "
            f"address, {SITE}/competitions/<slug>",
            code="invitation",
        )
    word = re.split(r"[/?#]", word)[0] if address != text.strip() else word
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", word, flags=re.I):
        raise InputError(
            f"'{text}' is no contest's slug",
            where,
            f"It is the last word of its address, {SITE}/competitions/<slug>",
            code="not_a_slug",
        )
    return word.lower()


def plain_dataset(text: str) -> str:
    """'OWNER/NAME' of the same or of the address of its page; raises InputError for anything else."""
    address = re.sub(r"^(https?://)?(www\.)?kaggle\.com/(datasets/)?", "", text.strip(), flags=re.I)
    found = re.fullmatch(
        r"([\w-]+)/([\w-]+)(/versions/\d+|/data)?/?([?#].*)?", address, flags=re.ASCII
    )
    if not found:
        raise InputError(
            f"'{text}' is no data set",
            "--dataset",
            f"It is OWNER/NAME, the last two words of its address, {SITE}/datasets/OWNER/NAME",
            code="not_a_slug",
        )
    return f"{found[1]}/{found[2]}"


class Kaggle:
    """Signed in. Every method raises InputError or StageError, in one line that says what to do; what may pass is tried again first."""

    def __init__(self) -> None:
        self.secrets: list[str] = []
        self.api = self._ask("", _sign_in)
        said = self.api.config_values
        basic = base64.b64encode(f"{said.get('username')}:{said.get('key')}".encode()).decode()
        self.secrets = [value for value in (said.get("key"), said.get("token"), basic) if value]

    def contest(self, slug: str) -> Contest:
        found = self._request(
            slug,
            "competitions",
            "competition",
            "get_competition",
            "ApiGetCompetitionRequest",
            competition_name=slug,
        )
        if found is None:
            return Contest(slug, slug, url(slug))
        deadline = found.deadline.replace(tzinfo=timezone.utc) if found.deadline else None
        return Contest(
            slug,
            found.title or slug,
            url(slug),
            deadline,
            found.user_has_entered,
            found.max_daily_submissions or None,
            found.evaluation_metric or "",
        )

    def files(self, of: str) -> list[RemoteFile]:
        """Of a contest SLUG or a data set OWNER/NAME; [] where there are more than 5000."""
        found, token = [], None
        self._needs(
            "dataset_list_files" if "/" in of else "competition_list_files", "cannot list files"
        )
        ask = self.api.dataset_list_files if "/" in of else self.api.competition_list_files
        for _ in range(PAGES):
            page = self._ask(of, lambda: ask(of, page_token=token, page_size=200))
            found += [
                RemoteFile(f.name, f.total_bytes or None)
                for f in (page.dataset_files if "/" in of else page.files)
            ]
            token = page.next_page_token
            if not token:
                return found
        return []

    def download(self, of: str, start: int = 0, mark: dict[str, Any] | None = None) -> Download:
        """Everything of a contest SLUG or a data set OWNER/NAME as one file: from byte `start` on where it still is the file of this `mark`, else from 0."""
        same = (mark["etag"] or mark["modified"]) if mark else None
        headers = {"Accept-Encoding": "identity"} | (
            {"Range": f"bytes={start}-", "If-Range": same} if start and same else {}
        )
        try:
            if "/" in of:
                owner, name = of.split("/")
                response = self._request(
                    of,
                    "datasets",
                    "dataset",
                    "download_dataset",
                    "ApiDownloadDatasetRequest",
                    headers,
                    owner_slug=owner,
                    dataset_slug=name,
                )
            else:
                response = self._request(
                    of,
                    "competitions",
                    "competition",
                    "download_data_files",
                    "ApiDownloadDataFilesRequest",
                    headers,
                    competition_name=of,
                )
        except RangeNotSatisfiable:
            return self.download(of)
        if response is None:
            raise too_old("cannot download")
        said = response.headers
        came = re.match(r"bytes (\d+)-\d+/(\d+)", said.get("Content-Range", ""))
        length = (
            came[2]
            if came
            else None
            if said.get("Content-Encoding")
            else said.get("Content-Length")
        )
        now = {
            "etag": said.get("ETag"),
            "modified": said.get("Last-Modified"),
            "bytes": int(length) if length else None,
        }
        if response.status_code == 206 and (
            not came or int(came[1]) != start or now != mark
        ):  # another file by now, and If-Range was not heeded
            response.close()
            return self.download(of)
        name = re.search(r'filename="?([^";]+)', said.get("Content-Disposition", ""))
        md5 = re.search(r"md5=([\w+/]+=*)", said.get("x-goog-hash", ""))
        return Download(
            name[1] if name else response.url.split("?")[0].rsplit("/", 1)[-1],
            now,
            md5[1] if md5 else said.get("Content-MD5", ""),
            start if came else 0,
            response,
        )

    def submissions(self, slug: str) -> list[RemoteSubmission]:
        """Newest first, the last hundred at most."""
        self._needs("competition_submissions", "cannot list submissions")
        found = self._ask(slug, lambda: self.api.competition_submissions(slug, page_size=100)) or []
        sent = [
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
                s.team_name or "",
            )
            for s in found
            if s
        ]
        return sorted(sent, key=lambda s: s.when, reverse=True)

    def remaining(self, slug: str) -> int | None:
        """Submissions left today; None where Kaggle does not say: to an older package, or as long as nobody of the team has sent anything, when all is zero."""
        if not hasattr(self.api, "competition_get_submission_limits"):
            return None
        found = self._ask(
            slug, lambda: self.api.competition_get_submission_limits(slug), absent=True
        )
        return (
            found.num_allowed_now
            if found and (found.num_allowed_now or found.num_today or found.num_total)
            else None
        )

    def submit(self, slug: str, file: Path, message: str) -> None:
        """Upload a file and hand it in. That this returns is no proof: look for it in `submissions`. NotSubmitted and InputError: Kaggle has nothing of it; any other
        StageError: it is not known how far it came."""
        self._needs("competition_submit", "cannot submit")
        said = io.StringIO()
        answer = self._ask(
            slug,
            lambda: self.api.competition_submit(
                str(file), message, slug, quiet=not sys.stderr.isatty()
            ),
            said=said,
            reads=False,
        )
        if getattr(answer, "message", answer) == NOT_UPLOADED:
            lines = [
                line
                for line in said.getvalue().splitlines()
                if re.search("error|exception|aborted|refused", line, re.I)
            ]
            why = f": {redact(lines[-1], self.secrets)}" if lines else ""
            raise NotSubmitted(
                f"the upload of {short(file)} broke off{why}. Nothing was handed in: "
                "run the same command again",
                code="upload_failed",
            )

    def _request(
        self,
        of: str,
        part: str,
        service: str,
        method: str,
        request: str,
        headers: dict[str, str] | None = None,
        **fields: Any,
    ) -> Any:
        """One request of the package's generated client, for what the public methods do not give; None where this version does not know it."""
        try:
            types = importlib.import_module(f"kagglesdk.{part}.types.{service}_api_service")
        except ImportError:
            return None
        if not hasattr(types, request):
            return None
        wanted = getattr(types, request)()
        for key, value in fields.items():
            setattr(wanted, key, value)

        def ask() -> Any:
            with self.api.build_kaggle_client() as client:
                known = getattr(getattr(client, part, None), f"{service}_api_client", None)
                return getattr(known, method)(wanted) if hasattr(known, method) else None

        return self._ask(of, ask, headers=headers)

    def _needs(self, method: str, what: str) -> None:
        if not hasattr(self.api, method):
            raise too_old(what)

    def _ask(
        self,
        of: str,
        ask: Callable[[], Any],
        headers: dict[str, str] | None = None,
        said: io.StringIO | None = None,
        absent: bool = False,
        reads: bool = True,
    ) -> Any:
        """What `ask` returns. `reads`: it changes nothing at Kaggle, so that a lost answer may be asked for again; `absent`: None in place of a 404."""
        for turn in range(TRIES):
            try:
                with bounded_requests(headers), redirect_stdout(said or io.StringIO()):
                    return ask()
            except (InputError, StageError):
                raise
            except Exception as error:
                status = getattr(getattr(error, "response", None), "status_code", None)
                if absent and status == 404:
                    return None
                found = translate(error, of, self.secrets)
            wait = (found.wait if isinstance(found, TransientError) else None) or PAUSE * 2**turn
            if (
                not isinstance(found, TransientError)
                or not (reads or status == 429)
                or turn + 1 == TRIES
                or wait > LONGEST
            ):
                raise found
            warn(f"{found.what}; trying again in {duration(wait)}")
            time.sleep(wait)


def _sign_in() -> Any:
    """The package's KaggleApi, authenticated."""
    hidden = {
        name: os.environ.pop(name) for name in ("VERBOSE", "VERBOSE_OUTPUT") if name in os.environ
    }  # with these it would print every header
    try:
        with redirect_stderr(io.StringIO()):
            try:
                from kaggle.api.kaggle_api_extended import KaggleApi
            except ImportError as error:
                raise InputError(
                    f"the package kaggle cannot be imported: {error}",
                    "",
                    "Install it with: pip install -U kaggle six",
                    code="no_package",
                ) from None
            if not hasattr(KaggleApi, "build_kaggle_client"):
                raise too_old("is older than 1.7")
            api = KaggleApi()
            api.authenticate()
            return api
    except SystemExit:
        raise not_signed_in() from None
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in (1, 13, 30):
            raise InputError(
                "the package kaggle cannot use its folder",
                error.filename or "",
                "Name another one by KAGGLE_CONFIG_DIR",
                code="no_permission",
            ) from None
        if re.match(
            "Could not find kaggle.json|Error: Missing", str(error)
        ):  # 1.7 without credentials
            raise not_signed_in() from None
        raise
    finally:
        os.environ.update(hidden)


def too_old(what: str) -> InputError:
    """For a package that lacks something; requirements.txt names the same version."""
    todo = f"Version {NEEDED} or newer is needed: pip install -U 'kaggle>={NEEDED}' six"
    return InputError(f"this package kaggle {what}", "", todo, code="kaggle_too_old")


def _number(text: object) -> float | None:
    try:
        return float(str(text))
    except ValueError:
        return None
