"""What can go wrong between here and Kaggle, each as one line that says what to do; and the bounds of how long the `kaggle` package may try by itself.

Nothing of an original exception is kept: it holds the request, and that the credentials.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from src.core.console import InputError, StageError, duration, short

SITE = "https://www.kaggle.com"
SETTINGS = f"{SITE}/settings"
SILENCE = (15, 60)  # seconds for a connection, and between two pieces of an answer
AGAIN = "Run the same command again to go on"


class TransientError(StageError):
    """It may go better the next time. `what`: without the advice; `wait`: how many seconds Kaggle asks for, if it does."""

    def __init__(self, what: str, todo: str = AGAIN, wait: float | None = None, *, code: str):
        super().__init__(f"{what}. {todo}", code=code)
        self.what, self.wait = what, wait


class NotSubmitted(StageError):
    """A submission of which Kaggle has nothing."""


class ConnectionLost(TransientError):
    """The connection was lost, or there was none."""


class ServerBusy(TransientError):
    """Kaggle refuses for now: 429 or 5xx."""


class RangeNotSatisfiable(StageError):
    """There is no such part of the file at Kaggle (416): what has arrived is not of it."""


def url(of: str) -> str:
    """The page of a contest SLUG or of a data set OWNER/NAME; '' is Kaggle."""
    return f"{SITE}/{'datasets' if '/' in of else 'competitions'}/{of}" if of else SITE


def credentials() -> str:
    """Where the package finds credentials, never what they are; '' where it finds none."""
    if os.environ.get("KAGGLE_API_TOKEN"):
        return "KAGGLE_API_TOKEN"
    if os.environ.get("KAGGLE_USERNAME") and os.environ.get("KAGGLE_KEY"):
        return "KAGGLE_USERNAME and KAGGLE_KEY"
    homes = [
        Path(os.environ.get("KAGGLE_CONFIG_DIR") or "~/.kaggle"),
        Path("~/.kaggle"),
        Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config") / "kaggle",
    ]
    files = [
        home.expanduser() / name
        for home in homes
        for name in ("access_token", "access_token.txt", "kaggle.json", "credentials.json")
    ]
    return next((short(f) for f in files if f.is_file()), "")


def not_signed_in(code: str = "") -> InputError:
    """For credentials that are missing or not accepted."""
    if where := credentials():
        todo = f"They are wrong, expired or damaged: make a new token at {SETTINGS} and put it in the place of the old one"
        return InputError(
            f"Kaggle does not accept the credentials{code}", where, todo, code="bad_credentials"
        )
    return InputError(
        "there are no Kaggle credentials",
        "~/.kaggle",
        f"Make a token at {SETTINGS} and write it to the file "
        "~/.kaggle/access_token, or set KAGGLE_API_TOKEN; "
        "a kaggle.json belongs into ~/.kaggle, too",
        code="no_credentials",
    )


def translate(error: BaseException, of: str, secrets: list[str]) -> InputError | StageError:
    """An exception of the package, or of the layers below it, as one of ours. `of`: a contest SLUG, a data set OWNER/NAME, or ''."""
    import requests

    text = redact(str(error), secrets)
    response = getattr(error, "response", None)
    if isinstance(error, requests.HTTPError) and response is not None:
        if re.match(r"\d{3} (Client|Server) Error", text):  # the words of requests, not of Kaggle
            try:
                text = redact(str(response.json()["message"]), secrets)
            except (ValueError, KeyError, TypeError, OSError):
                text = ""
        return _refused(response, text, of)
    if isinstance(error, OSError) and error.errno == 28:
        return InputError(
            "the disk is full",
            "",
            "Free some space, then run the same command again",
            code="disk_full",
        )
    todo = (
        f"{AGAIN}; without a network, put the files of {url(of)} where input/README.md says"
        if of
        else "Is the network on? " + AGAIN
    )
    kinds = requests.exceptions
    if isinstance(error, kinds.SSLError):
        return ConnectionLost(
            "the connection to Kaggle is not trusted: a proxy in between?",
            f"REQUESTS_CA_BUNDLE names its certificate. {todo}",
            code="connection_not_trusted",
        )
    if isinstance(error, kinds.ProxyError):
        return ConnectionLost(
            "the proxy of http_proxy or https_proxy does not answer", todo, code="no_proxy"
        )
    if isinstance(error, kinds.Timeout) or "timed out" in text:
        return ConnectionLost(
            "Kaggle was silent for "
            f"{SILENCE[0] if isinstance(error, kinds.ConnectTimeout) else SILENCE[1]} s",
            todo,
            code="kaggle_silent",
        )
    if re.search("NameResolution|getaddrinfo|Name or service|resolve", text):
        return ConnectionLost("no network: Kaggle's address is not found", todo, code="no_network")
    if re.search("refused|NewConnection|unreachable", text, re.I):
        return ConnectionLost(
            "no connection to Kaggle: it is refused", todo, code="connection_refused"
        )
    if isinstance(error, (kinds.ConnectionError, kinds.ChunkedEncodingError, ConnectionError)):
        return ConnectionLost("the connection to Kaggle broke off", todo, code="connection_lost")
    if isinstance(error, (json.JSONDecodeError, kinds.JSONDecodeError)):
        return StageError(
            "the answer is not Kaggle's: does the network ask to sign in first? "
            "Open any page in a browser, then run the same command again",
            code="not_kaggle",
        )
    return StageError(
        f"the package kaggle failed: {type(error).__name__}: {text}", code="kaggle_failed"
    )


def _refused(response: Any, text: str, of: str) -> InputError | StageError:
    """For an answer of 400 and more; `text`: Kaggle's reason, or ''."""
    code = response.status_code
    says = f": {text}" if text else ""
    if code == 401:
        return not_signed_in(" (401)")
    if code == 403 and "/" in of:
        return InputError(
            f"Kaggle denies access to this data set (403{says})",
            url(of),
            "Open its page with the account of the token: is it there, and yours to read?",
            code="dataset_denied",
        )
    if code == 403 and of:
        return InputError(
            f"Kaggle denies access to this contest (403{says})",
            of,
            f"Open {url(of)}/rules, join the contest and accept its rules, then run "
            "the same command again; "
            "a misspelt slug is refused in the same way",
            code="rules_not_accepted",
        )
    if code == 404 and "/" in of:
        return InputError(
            f"there is no data set '{of}' at Kaggle (404)",
            "--dataset",
            f"It is OWNER/NAME, the last two words of its address, {SITE}/datasets/OWNER/NAME",
            code="no_such_dataset",
        )
    if code == 404 and of:
        return InputError(
            f"there is no contest '{of}' at Kaggle (404)",
            "--competition or slug",
            f"The slug is the last word of its address, {SITE}/competitions/<slug>; "
            "an invitation link "
            f"such as {SITE}/t/… is none: open it in a browser, join, and look at "
            "the address then",
            code="no_such_contest",
        )
    if code == 416:
        return RangeNotSatisfiable(
            "what has arrived does not fit the file at Kaggle (416)", code="other_file"
        )
    if code == 429:
        wait = _seconds(response.headers.get("Retry-After"))
        return ServerBusy(
            "Kaggle counts too many requests (429)",
            f"Wait {duration(wait) if wait else 'some minutes'}, then run the same command again",
            wait,
            code="too_many_requests",
        )
    if code >= 500:
        return ServerBusy(
            f"Kaggle has trouble of its own ({code}{says})",
            "Run the same command again later",
            _seconds(response.headers.get("Retry-After")),
            code="kaggle_trouble",
        )
    return InputError(
        f"Kaggle refuses ({code}{says or ', without a reason'})", url(of), code="kaggle_refuses"
    )


def redact(text: str, secrets: list[str]) -> str:
    """One line, without credentials and without the signatures in addresses."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return re.sub(r"\?[^\s'\")]*=[^\s'\")]*", "", " ".join(text.split()))[:300].rstrip(". ")


def _seconds(text: str | None) -> float | None:
    """Of a Retry-After header: seconds, or a date."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        try:
            return max(
                0.0, (parsedate_to_datetime(text) - datetime.now(timezone.utc)).total_seconds()
            )
        except (TypeError, ValueError):
            return None


@contextmanager
def bounded_requests(headers: dict[str, str] | None = None) -> Iterator[None]:
    """The package waits for ever, tries a failed upload for six minutes and, before 2.0, reads a whole download into memory. All its versions since 1.7 go
    through requests.Session.send, and there this is bounded. `headers`: it is a download, to be streamed, and these are asked with."""
    import requests
    from urllib3.util.retry import Retry

    original = requests.Session.send

    def send(session, request, **options):
        if options.get("timeout") is None:
            options["timeout"] = SILENCE
        if headers is not None:
            options["stream"] = True
            if request.method == "GET":  # what Kaggle redirects to
                request.headers.update(headers)
        for adapter in session.adapters.values():
            if adapter.max_retries.total:
                adapter.max_retries = Retry(3, backoff_factor=0.5)
        return original(session, request, **options)

    requests.Session.send = send
    try:
        yield
    finally:
        requests.Session.send = original
