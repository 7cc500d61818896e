"""What can go wrong between here and Kaggle, each as one line that says what to do, and the time
limits of the `kaggle` package's requests.

No original exception is kept: it holds the request, and with it the credentials.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from src.core.console import InputError, StageError, duration, short, warn

SITE = "https://www.kaggle.com"
SETTINGS = f"{SITE}/settings"
TIMEOUT = (15, 60)  # seconds for a connection, and between two pieces of an answer
AGAIN = "Run the same command again to go on"


class TransientError(StageError):
    """It may work the next time. `what`: the message without the advice; `wait`: the seconds that
    Kaggle asks for, or None."""

    def __init__(self, what: str, todo: str = AGAIN, wait: float | None = None, *, code: str):
        super().__init__(f"{what}. {todo}", code=code)
        self.what, self.wait = what, wait


class NotSubmitted(StageError):
    """A submission that did not reach Kaggle."""


class ConnectionLost(TransientError):
    """The connection broke, or could not be made."""


class ServerBusy(TransientError):
    """Kaggle refuses for now: 429 or 5xx."""


class RangeNotSatisfiable(StageError):
    """Kaggle's file has no such part (416), so what was downloaded belongs to another file."""


def url(of: str) -> str:
    """The page of a contest SLUG or of a data set OWNER/NAME; '' is Kaggle itself."""
    return f"{SITE}/{'datasets' if '/' in of else 'competitions'}/{of}" if of else SITE


def credentials() -> str:
    """Where the package finds credentials, never what they are; '' where it finds none."""
    if os.environ.get("KAGGLE_API_TOKEN"):
        return "KAGGLE_API_TOKEN"
    if os.environ.get("KAGGLE_USERNAME") and os.environ.get("KAGGLE_KEY"):
        return "KAGGLE_USERNAME and KAGGLE_KEY"
    folders = [
        Path(os.environ.get("KAGGLE_CONFIG_DIR") or "~/.kaggle"),
        Path("~/.kaggle"),
        Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config", "kaggle"),
    ]
    names = ("access_token", "access_token.txt", "kaggle.json", "credentials.json")
    files = (folder.expanduser() / name for folder in folders for name in names)
    return next((short(f) for f in files if f.is_file()), "")


def not_signed_in(status: str = "") -> InputError:
    """The error for credentials that are missing or not accepted."""
    if where := credentials():
        return InputError(
            f"Kaggle does not accept the credentials{status}",
            where,
            "They are wrong, expired or damaged: "
            f"make a new token at {SETTINGS} and replace the old one with it",
            code="bad_credentials",
        )
    return InputError(
        "there are no Kaggle credentials",
        "~/.kaggle",
        f"Make a token at {SETTINGS} and write it to the file ~/.kaggle/access_token, or set "
        "KAGGLE_API_TOKEN; a kaggle.json belongs in ~/.kaggle, too",
        code="no_credentials",
    )


def translate(error: BaseException, of: str, secrets: list[str]) -> InputError | StageError:
    """An exception of the package, or of the layers below it, as one of ours.

    of: what was asked for, a contest SLUG, a data set OWNER/NAME, or ''. secrets: never quoted.
    """
    import requests

    response = getattr(error, "response", None)
    if isinstance(error, requests.HTTPError) and response is not None:
        return _http_error(response, redact(_reason(error), secrets), of)
    if isinstance(error, OSError) and error.errno == 28:
        return InputError(
            "the disk is full",
            "",
            "Free some space, then run the same command again",
            code="disk_full",
        )
    text = redact(str(error), secrets)
    todo = f"Is the network on? {AGAIN}"
    if of:
        todo = f"{AGAIN}; without a network, put the files of {url(of)} where input/README.md says"

    def lost(what: str, code: str) -> ConnectionLost:
        return ConnectionLost(what, todo, code=code)

    meanings = {
        "SSLError": lost(
            "the connection to Kaggle is not trusted: where a proxy is in between, "
            "REQUESTS_CA_BUNDLE must name its certificate",
            "connection_not_trusted",
        ),
        "ProxyError": lost("the proxy of http_proxy or https_proxy does not answer", "no_proxy"),
        "ConnectTimeout": lost(f"Kaggle did not answer for {TIMEOUT[0]} s", "kaggle_silent"),
        "Timeout|timed out": lost(f"Kaggle did not answer for {TIMEOUT[1]} s", "kaggle_silent"),
        "NameResolution|getaddrinfo|Name or service|resolve": lost(
            "no network: Kaggle's address is unknown", "no_network"
        ),
        "(?i)refused|NewConnection|unreachable": lost(
            "no connection to Kaggle: it is refused", "connection_refused"
        ),
        r"\bConnectionError|ChunkedEncodingError": lost(
            "the connection to Kaggle broke", "connection_lost"
        ),
        "JSONDecodeError": StageError(
            "the answer is not Kaggle's: does the network ask to sign in first? "
            "Open any page in a browser, then run the same command again",
            code="not_kaggle",
        ),
        "": StageError(
            f"the package kaggle failed: {type(error).__name__}: {text}", code="kaggle_failed"
        ),
    }
    described = " ".join([*(kind.__name__ for kind in type(error).__mro__), text])
    return next(found for words, found in meanings.items() if re.search(words, described))


def _reason(error: Any) -> str:
    """Kaggle's own words, or ''."""
    if not re.match(r"\d{3} (Client|Server) Error", str(error)):  # else the words of requests
        return str(error)
    try:
        return str(error.response.json()["message"])
    except (ValueError, KeyError, TypeError, OSError):
        return ""


def _http_error(response: Any, reason: str, of: str) -> InputError | StageError:
    """For an answer of 400 and more."""
    status, is_dataset = response.status_code, "/" in of
    shown = f"{status}: {reason}" if reason else str(status)
    if status == 401:
        return not_signed_in(" (401)")
    if status == 403 and is_dataset:
        return InputError(
            f"Kaggle denies access to this data set ({shown})",
            url(of),
            "Open its page with the token's account: does it exist, and may you read it?",
            code="dataset_denied",
        )
    if status == 403 and of:
        return InputError(
            f"Kaggle denies access to this contest ({shown})",
            of,
            f"Open {url(of)}/rules, join the contest and accept its rules, then run the same "
            "command again; a misspelt slug is refused in the same way",
            code="rules_not_accepted",
        )
    if status == 404 and is_dataset:
        return InputError(
            f"there is no data set '{of}' at Kaggle (404)",
            "--dataset",
            f"It is OWNER/NAME, the last two words of its address, {SITE}/datasets/OWNER/NAME",
            code="no_such_dataset",
        )
    if status == 404 and of:
        return InputError(
            f"there is no contest '{of}' at Kaggle (404)",
            "--competition or slug",
            f"The slug is the last word of its address, {SITE}/competitions/<slug>; an invitation "
            f"link such as {SITE}/t/… does not hold it: open it in a browser, join, and look at "
            "the address then",
            code="no_such_contest",
        )
    if status == 416:
        return RangeNotSatisfiable(
            "what was downloaded does not fit the file at Kaggle (416)", code="other_file"
        )
    wait = _retry_after(response)
    if status == 429:
        return ServerBusy(
            "Kaggle counts too many requests (429)",
            f"Wait {duration(wait) if wait else 'some minutes'}, then run the same command again",
            wait,
            code="too_many_requests",
        )
    if status >= 500:
        return ServerBusy(
            f"Kaggle has trouble of its own ({shown})",
            "Run the same command again later",
            wait,
            code="kaggle_trouble",
        )
    return InputError(
        f"Kaggle refuses ({shown if reason else f'{status}, without a reason'})",
        url(of),
        code="kaggle_refuses",
    )


def _retry_after(response: Any) -> float | None:
    """Seconds, where the answer names them or a date."""
    from urllib3.exceptions import InvalidHeader
    from urllib3.util.retry import Retry

    try:
        return float(Retry().parse_retry_after(response.headers["Retry-After"]))
    except (KeyError, InvalidHeader):
        return None


def redact(text: str, secrets: list[str]) -> str:
    """One line, without credentials and without the signatures in addresses."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return re.sub(r"\?[^\s'\")]*=[^\s'\")]*", "", " ".join(text.split()))[:300].rstrip(". ")


def pause(error: TransientError, seconds: float, where: str = "") -> None:
    """Say what failed, and wait before the next try."""
    warn(f"{error.what}{where}; trying again in {duration(seconds)}")
    time.sleep(seconds)


@contextmanager
def bounded_requests(headers: dict[str, str] | None = None) -> Iterator[None]:
    """Time limits for the package's requests, which all its versions since 1.7 make through
    requests.Session.send. By itself it waits for ever, retries a failed upload for six minutes
    and, before 2.0, reads a whole download into memory.

    headers: of a download, which is then streamed.
    """
    import requests
    from urllib3.util.retry import Retry

    original = requests.Session.send

    def send(session, request, **options):
        if options.get("timeout") is None:
            options["timeout"] = TIMEOUT
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
