"""The client: what it asks for, one clear line for everything that is refused, and no credentials
in anything that it says."""

import argparse
import ast
import os
import re
import subprocess
import sys
import traceback
from datetime import datetime, timezone

import pytest
import requests
from conftest import ROOT, refused
from kaggle_server import CLEARED, KEY, SECRETS, TOKEN, USER, KaggleServer, ago, enter

from src.config.load import Config
from src.core.console import InputError, StageError
from src.core.paths import Paths
from src.core.settings import Competition
from src.kaggle_io import client as kaggle
from src.kaggle_io import errors
from src.kaggle_io.client import Contest, Kaggle, RemoteSubmission
from src.kaggle_io.slugs import plain_dataset, plain_slug, slug_of


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(kaggle, "PAUSE", 0.01)


def refuses(code: str, words: tuple[str, ...], call) -> str:
    """The message of what `call` raises; neither it nor its traceback holds credentials."""
    with refused(code, *words, kind=(InputError, StageError)) as caught:
        call()
    text = "".join(traceback.format_exception(caught.value))
    assert not [s for s in SECRETS if s in text] and "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("how", ["key", "token"])
def test_what_it_says_of_a_contest(server, monkeypatch, tmp_path, how, capfd):
    enter(monkeypatch, server, tmp_path / "home", how)
    server.add(
        "a-contest",
        {f"train/{i}.png": b"x" * i for i in range(250)},
        daily=3,
        used=1,
        deadline=datetime(2031, 5, 1, 23, 59),
    )
    server.add_dataset("some-one/data", {"a.csv": b"1,2"})
    client = Kaggle()
    assert client.contest("a-contest") == Contest(
        "a-contest",
        "A contest",
        datetime(2031, 5, 1, 23, 59, tzinfo=timezone.utc),
        True,
        3,
        "Mean of Dice and macro F1",
    )
    files = client.files("a-contest")  # two pages
    assert len(files) == 250
    assert files["train/7.png"] == 7
    assert client.files("some-one/data") == {"a.csv": 3}
    assert client.remaining("a-contest") == 2 and client.submissions("a-contest") == []
    # CONNECT: another library's thread in this process, led here by the same variables
    asked = [s for s in server.seen if s.endpoint not in ("IntrospectToken", "CONNECT")]
    assert {s.headers.get("Authorization") for s in asked} == {"***"}
    assert capfd.readouterr() == ("", "")


def test_submitting_and_the_list(server, tmp_path, capfd):
    contest = server.add("a-contest", scorer=lambda data: (len(data) / 10000, 0.25), polls=1)
    client, file = Kaggle(), tmp_path / "best.csv"
    file.write_text("id,label\n" * 1000)
    assert client.submit("a-contest", file, "the first one") is None
    assert contest.submissions[0]["data"] == file.read_bytes()
    first = client.submissions("a-contest")[0]
    expected = ("41000000", first.when, "best.csv", "the first one", "pending")
    assert first == RemoteSubmission(*expected, user=USER)
    assert (
        abs(
            datetime.fromisoformat(first.when.replace("Z", "+00:00")) - datetime.now(timezone.utc)
        ).total_seconds()
        < 60
    )
    again = client.submissions("a-contest")[0]
    assert (again.ref, again.status, again.public, again.private) == (
        "41000000",
        "complete",
        0.9,
        0.25,
    )
    contest.scorer = reject
    client.submit("a-contest", file, "")
    client.submissions("a-contest")
    newest, oldest = client.submissions("a-contest")
    assert (newest.ref, newest.status, newest.public, newest.error) == (
        "41000001",
        "error",
        None,
        "Unknown id us_1 in row 3",
    )
    assert oldest == again
    assert "Authorization" not in server.asked("Upload")[0].headers  # another host
    assert capfd.readouterr().out == ""


def reject(data: bytes) -> float:
    raise ValueError("Unknown id us_1\n in row 3")


def test_the_package_is_content_with_the_stand_in(server, tmp_path):
    """Its own downloads too, which fetch does without."""
    contest = server.add("a-contest", {"a.csv": b"id" * 40_000, "b.csv": b"2"})
    api = Kaggle().api
    api.competition_download_files("a-contest", str(tmp_path), quiet=True)
    assert (tmp_path / "a-contest.zip").read_bytes() == contest.zipped()
    api.competition_download_file("a-contest", "a.csv", str(tmp_path), quiet=True)
    assert (tmp_path / "file").read_bytes() == contest.files["a.csv"]


ASKING = {
    "GetCompetition": lambda c: c.contest("a-contest"),
    "ListDataFiles": lambda c: c.files("a-contest"),
    "DownloadDataFiles": lambda c: c.download("a-contest"),
    "ListSubmissions": lambda c: c.submissions("a-contest"),
    "DownloadDataset": lambda c: c.download("some-one/data"),
    "Storage": lambda c: c.download("a-contest"),
}


PAGE = "https://www.kaggle.com/competitions/a-contest"
REFUSALS = [
    ("GetCompetition", 401, "bad_credentials", "(401) (KAGGLE_USERNAME and KAGGLE_KEY)"),
    ("DownloadDataFiles", 403, "rules_not_accepted", f"must) (a-contest). Open {PAGE}/rules"),
    ("DownloadDataset", 403, "dataset_denied", "(https://www.kaggle.com/datasets/some-one/data)"),
    ("ListDataFiles", 404, "no_such_contest", "'a-contest'"),
    ("DownloadDataset", 404, "no_such_dataset", "'some-one/data'"),
    ("ListSubmissions", 400, "kaggle_refuses", f"(400: You must) ({PAGE})"),
    ("ListSubmissions", 500, "kaggle_trouble", "(500: You must)"),
    ("ListSubmissions", 429, "too_many_requests", "some minutes"),
    ("Storage", 403, "rules_not_accepted", "a-contest"),
]


@pytest.mark.parametrize(("endpoint", "status", "code", "word"), REFUSALS)
def test_refusals(server, endpoint, status, code, word, capfd):
    server.add("a-contest", {"a": b"1"})
    server.add_dataset("some-one/data", {"a": b"1"})
    client = Kaggle()
    server.fault(endpoint, status, message="You must")
    refuses(code, (word,), lambda: ASKING[endpoint](client))
    tries = kaggle.TRIES if status in (429, 500) else 1
    assert len(server.asked(endpoint)) == tries
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("trying again") == tries - 1
    assert not [s for s in SECRETS if s in err]


def test_what_passes_is_tried_again(server, monkeypatch):
    server.add("a-contest")
    client, waited = Kaggle(), []
    monkeypatch.setattr(errors.time, "sleep", waited.append)
    server.fault("GetCompetition", 429, headers={"Retry-After": "7"}, times=1)
    server.fault("GetCompetition", 503, times=1)
    server.fault("GetCompetition", cut=10, times=1)
    assert client.contest("a-contest").title == "A contest"
    assert waited[0] == 7 and len(waited) == 3 and len(server.asked("GetCompetition")) == 4
    server.fault("GetCompetition", 429, headers={"Retry-After": "1000"})
    refuses("too_many_requests", ("16 min 40 s",), lambda: client.contest("a-contest"))
    assert len(waited) == 3  # nobody waits that long without being told
    later = datetime.now(timezone.utc).replace(year=2060).strftime("%a, %d %b %Y %H:%M:%S GMT")
    server.faults.clear()
    server.fault("GetCompetition", 429, headers={"Retry-After": later})
    text = refuses("too_many_requests", (), lambda: client.contest("a-contest"))
    assert re.search(r"\d+ h", text)


def test_no_network(server, monkeypatch):
    server.add("a-contest")
    client = Kaggle()
    monkeypatch.setattr(errors, "TIMEOUT", (0.2, 0.2))
    server.fault("GetCompetition", hang=0.6)
    words = ("0.2 s", "https://www.kaggle.com/competitions/a-contest", "input/README.md")
    refuses("kaggle_silent", words, lambda: client.contest("a-contest"))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens there
    refuses("no_proxy", (), lambda: client.contest("a-contest"))


CONNECTION = requests.ConnectionError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (requests.exceptions.SSLError("certificate verify failed"), "connection_not_trusted"),
        (CONNECTION("Failed to resolve 'api.kaggle.com' ([Errno -2] Name or"), "no_network"),
        (CONNECTION("NewConnectionError: [Errno 111] Connection refused"), "connection_refused"),
        (CONNECTION("Connection aborted."), "connection_lost"),
        (requests.exceptions.JSONDecodeError("x", "<html>", 0), "not_kaggle"),
        (OSError(28, "No space left on device"), "disk_full"),
        (KeyError("anything else"), "kaggle_failed"),
    ],
)
def test_each_trouble_of_the_network_has_its_error(error, code):
    assert errors.translate(error, "a-contest", []).code == code


def test_secrets_are_taken_out_of_what_is_quoted():
    text = errors.redact(
        f"GET http://storage.test/a.zip?Signature=the-signature&x=1 with {KEY}\nfailed?", [KEY]
    )
    assert text == "GET http://storage.test/a.zip with *** failed?"


@pytest.mark.parametrize(
    ("how", "files", "code", "word"),
    [
        ("none", {}, "no_credentials", "~/.kaggle/access_token, or set KAGGLE_API_TOKEN"),
        ("none", {"access_token": "KGAT_another"}, "bad_credentials", "access_token)"),
        ("none", {"kaggle.json": '{"username": '}, "bad_credentials", "kaggle.json)"),
        ("bad token", {}, "bad_credentials", "(KAGGLE_API_TOKEN)"),
        ("bad key", {}, "bad_credentials", "(401) (KAGGLE_USERNAME and KAGGLE_KEY)"),
        ("none", {"access_token": TOKEN}, None, ""),
        ("none", {"kaggle.json": f'{{"username": "{USER}", "key": "{KEY}"}}'}, None, ""),
    ],
)
def test_credentials(tmp_path, how, files, code, word):
    """In a process of its own: the package looks for its folder when it is imported. VERBOSE would
    make it print every header."""
    (tmp_path / ".kaggle").mkdir()
    for name, text in files.items():
        (tmp_path / ".kaggle" / name).write_text(text)
        (tmp_path / ".kaggle" / name).chmod(0o600)
    extra = {
        "bad token": {"KAGGLE_API_TOKEN": "KGAT_another"},
        "bad key": {"KAGGLE_USERNAME": USER, "KAGGLE_KEY": "another"},
    }.get(how, {})
    with KaggleServer() as running:
        running.add("a-contest")
        env = (
            {k: v for k, v in os.environ.items() if k not in CLEARED}
            | running.environment(tmp_path, "none")
            | extra
            | {"VERBOSE": "true"}
        )
        script = """if True:
            import logging
            from src.kaggle_io.client import Kaggle
            try:
                print(Kaggle().contest("a-contest").title, logging.getLogger().handlers)
            except Exception as e:
                print(type(e).__name__, e.code, e)
        """
        ran = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ran.stderr == "" and not [s for s in (*SECRETS, "another") if s in ran.stdout]
    if code is None:
        assert ran.stdout == "A contest []\n"
    else:
        assert ran.stdout.startswith(f"InputError {code} ") and ran.stdout.count("\n") == 1
        assert word in ran.stdout


def test_a_download_goes_on_only_with_the_same_file(server):
    contest = server.add("a-contest", {"a.bin": os.urandom(300_000)})
    client = Kaggle()
    arriving = client.download("a-contest")
    data, mark = b"".join(arriving), arriving.mark
    assert data == contest.zipped()
    assert arriving.name == "archive.zip"
    assert mark.bytes == len(data)
    assert arriving.start == 0
    rest = client.download("a-contest", 100_000, mark)
    assert rest.start == 100_000 and b"".join(rest) == data[100_000:] and rest.mark == mark
    assert server.asked("Storage")[-1].sent == len(data) - 100_000
    assert "Authorization" not in server.asked("Storage")[-1].headers
    assert (
        client.download("a-contest", 100_000, mark.model_copy(update={"bytes": 7})).start == 0
    )  # If-Range was not enough
    assert client.download("a-contest", len(data), mark).start == 0  # 416
    contest.archive = None
    contest.files["b"] = b"new"
    changed = client.download("a-contest", 100_000, mark)
    assert changed.start == 0 and b"".join(changed) == contest.zipped() and changed.mark != mark


WRONG = [  # the contest, what is at fault, the error and its words, how many submissions Kaggle has
    ({"entered": False}, None, "rules_not_accepted", "403: You cannot submit until", 0),
    ({"deadline": ago(days=1)}, None, "kaggle_refuses", "deadline has passed", 0),
    ({"daily": 2, "used": 2}, None, "kaggle_refuses", "400: Submission not allowed: ", 0),
    ({}, ("Upload", {"status": 400}), "upload_failed", "best.csv", 0),
    ({}, ("Upload", {"cut": 1000}), "upload_failed", "Nothing was submitted", 0),
    ({}, ("Upload", {"cut": 1000, "times": 1}), "", "", 1),
    ({}, ("CreateSubmission", {"status": 500}), "kaggle_trouble", "(500", 0),
    # submitted, and the answer was lost
    ({}, ("CreateSubmission", {"cut": 3}), "connection_lost", "", 1),
    ({}, ("StartSubmissionUpload", {"status": 429, "times": 1}), "", "", 1),
    ({"lost": True}, None, "", "", 0),
]


@pytest.mark.parametrize(("contest", "fault", "code", "word", "kept"), WRONG)
def test_submitting_goes_wrong(server, tmp_path, contest, fault, code, word, kept):
    there, file = server.add("a-contest", **contest), tmp_path / "best.csv"
    file.write_text("id,label\n" * 5000)
    client = Kaggle()
    if fault:
        server.fault(fault[0], **fault[1])

    def send() -> None:
        client.submit("a-contest", file, "hello")

    refuses(code, (word,), send) if code else send()
    assert len(there.submissions) == kept
    assert len(server.asked("CreateSubmission")) <= 1  # never twice
    assert all(s["data"] == file.read_bytes() for s in there.submissions)


def test_remaining_where_kaggle_does_not_say(server):
    server.add("a-contest", daily=0)
    server.add("b-contest", limits=False)
    server.add("c-contest", daily=2, used=2)
    client = Kaggle()
    assert client.remaining("a-contest") is None  # all zero: not in a team yet
    assert client.remaining("b-contest") is None
    assert client.remaining("c-contest") == 0


@pytest.mark.parametrize(
    "text",
    [
        "a-contest",
        "https://www.kaggle.com/competitions/a-contest",
        "https://www.kaggle.com/competitions/A-contest/data?x=1",
        "kaggle.com/c/a-contest/overview",
        " a-contest ",
    ],
)
def test_a_slug_or_the_address_of_a_page(text):
    assert plain_slug(text) == "a-contest"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("https://www.kaggle.com/t/0123456789abcdef0123456789abcdef", "invitation"),
        ("0123456789abcdef0123456789abcdef", "invitation"),
        ("https://example.org/a-contest", "not_a_slug"),
        ("../etc", "not_a_slug"),
        ("some-one/data", "not_a_slug"),
        ("https://www.kaggle.com/competitions/", "not_a_slug"),
    ],
)
def test_what_is_no_slug(text, code):
    with refused(code):
        plain_slug(text)


def test_data_sets():
    assert plain_dataset("aryashah2k/breast-ultrasound-images-dataset") == plain_dataset(
        "https://www.kaggle.com/datasets/aryashah2k/breast-ultrasound-images-dataset?resource=download"
    )
    for text in ("busi", "a/b/c", "../b", "a/.."):
        with refused("not_a_slug", f"'{text}'", "OWNER/NAME"):
            plain_dataset(text)


def test_which_contest(tmp_path):
    paths = Paths(tmp_path, tmp_path / "data")
    paths.data.mkdir()
    given, config = (
        argparse.Namespace(competition=None),
        Config("c", tmp_path / "c.yaml", Competition()),
    )
    with refused("no_contest_named", "--competition", "slug: in competition.yaml", "fetched.json"):
        slug_of(given, config, paths)
    paths.fetched.write_text('{"competition": "of-the-folder", "dataset": null}')
    assert slug_of(given, config, paths) == "of-the-folder"
    config.competition = Competition(slug="of-the-config")
    assert slug_of(given, config, paths) == "of-the-config"
    given.competition = "typed"
    assert slug_of(given, config, paths) == "typed"
    config.competition, given.competition = Competition(slug="https://www.kaggle.com/t/abc"), None
    with refused("invitation", "(slug in competition.yaml)"):
        slug_of(given, config, paths)


def test_nothing_else_imports_the_package():
    """Writing a CSV must not need it, nor the network."""

    def names(node: ast.AST) -> list[str]:
        return (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )

    for file in (ROOT / "src").rglob("*.py"):
        tree = ast.parse(file.read_text())
        roots = {name.split(".")[0] for node in ast.walk(tree) for name in names(node)}
        assert file.name == "client.py" or not roots & {"kaggle", "kagglesdk"}, file
        assert not {name.split(".")[0] for node in tree.body for name in names(node)} & {
            "kaggle",
            "kagglesdk",
            "requests",
        }, file
