"""What the stand-in for Kaggle (kaggle_server.py) answers: one method for each request that the
`kaggle` package 2.2.4 makes, by the request's own name."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kaggle_server import KaggleServer

USER, KEY, TOKEN = "contestant", "0123456789abcdef-the-key", "KGAT_0123456789-the-token"
RULES = "You must accept this competition's rules before you'll be able to download files."


@dataclass
class Files:
    """A contest's or a data set's files. `archive`: the bytes of "download all" where they are not
    simply a zip of the files."""

    files: dict[str, bytes] = field(default_factory=dict)
    archive: bytes | None = None
    archive_name: str = "archive.zip"

    def zipped(self) -> bytes:
        if self.archive is None:
            self.archive = make_zip(self.files)
        return self.archive


@dataclass
class Contest(Files):
    title: str = "A contest"
    metric: str = "Mean of Dice and macro F1"
    entered: bool = True
    deadline: datetime = datetime(2030, 1, 1)
    daily: int = 5
    used: int = 0  # submissions of today that were made elsewhere
    scorer: Callable[[bytes], float | tuple[float, float]] = lambda data: (
        0.5
    )  # public or (public, private); a ValueError's text rejects the file
    polls: int = 0  # how often the list still says "pending"
    lost: bool = False  # submissions are answered with success and never appear
    limits: bool = True  # False: the server knows no GetSubmissionLimits
    show_private: bool = True
    submissions: list[dict] = field(default_factory=list)  # oldest first


class Refused(Exception):
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Endpoints:
    """A request's JSON in, the answer's JSON (or, as text, the address to be redirected to) out;
    Refused is an answer too."""

    kaggle: KaggleServer

    def contest(self, body: dict, entered: str = "") -> Contest:
        found = self.kaggle.contests.get(body.get("competitionName", ""))
        if found is None:
            raise Refused(404, "Competition not found")
        if entered and not found.entered:
            raise Refused(403, entered)
        return found

    def dataset(self, body: dict) -> tuple[str, Files]:
        name = f"{body.get('ownerSlug')}/{body.get('datasetSlug')}"
        if name not in self.kaggle.datasets:
            raise Refused(404, "Dataset not found")
        return name, self.kaggle.datasets[name]

    def listed(self, files: dict[str, bytes], body: dict, key: str) -> dict:
        size, start = body.get("pageSize") or 20, int(body.get("pageToken") or 0)
        page = [
            {"ref": n, "name": n, "totalBytes": len(d), "creationDate": "2026-07-01T12:00:00Z"}
            for n, d in list(files.items())[start : start + size]
        ]
        return {key: page, "nextPageToken": str(start + size) if start + size < len(files) else ""}

    def IntrospectToken(self, body: dict) -> dict:
        return {
            "active": body.get("token") == TOKEN,
            "username": USER if body.get("token") == TOKEN else "",
        }

    def GetCompetition(self, body: dict) -> dict:
        c, slug = self.contest(body), body["competitionName"]
        return {
            "id": 1,
            "ref": f"https://www.kaggle.com/competitions/{slug}",
            "title": c.title,
            "url": f"https://www.kaggle.com/competitions/{slug}",
            "deadline": stamp(c.deadline),
            "userHasEntered": c.entered,
            "maxDailySubmissions": c.daily,
            "evaluationMetric": c.metric,
        }

    def ListDataFiles(self, body: dict) -> dict:
        return self.listed(self.contest(body).files, body, "files")

    def DownloadDataFiles(self, body: dict) -> str:
        c = self.contest(body, RULES)
        return f"http://storage.test/contest/{body['competitionName']}/{c.archive_name}?Signature=the-signature"

    def DownloadDataFile(self, body: dict) -> str:
        if body["fileName"] not in self.contest(body, RULES).files:
            raise Refused(404, "File not found")
        return f"http://storage.test/contest/{body['competitionName']}:{body['fileName']}/file?Signature=the-signature"

    def ListDatasetFiles(self, body: dict) -> dict:
        return self.listed(self.dataset(body)[1].files, body, "datasetFiles")

    def DownloadDataset(self, body: dict) -> str:
        name, files = self.dataset(body)
        return f"http://storage.test/dataset/{name}/{files.archive_name}?Signature=the-signature"

    def StartSubmissionUpload(self, body: dict) -> dict:
        self.contest(body, "You cannot submit until you accept the competition rules")
        token = f"blob{len(self.kaggle.names)}"
        self.kaggle.names[token] = body["fileName"]
        return {"token": token, "createUrl": f"http://upload.test/{token}"}

    def CreateSubmission(self, body: dict) -> dict:
        c, token = (
            self.contest(body, "You cannot submit until you accept the competition rules"),
            body["blobFileTokens"],
        )
        if c.deadline < datetime.now(timezone.utc).replace(tzinfo=None):
            raise Refused(400, "The competition deadline has passed.")
        if used_today(c) >= c.daily:
            raise Refused(
                400,
                "Submission not allowed: Your team has used its daily Submission allowance "
                f"({c.daily}) today, please try again tomorrow UTC.",
            )
        data, ref = bytes(self.kaggle.blobs.get(token, b"")), 41000000 + len(c.submissions)
        if not c.lost:
            c.submissions.append(
                {
                    "ref": ref,
                    "totalBytes": len(data),
                    "date": stamp(datetime.now(timezone.utc)),
                    "description": body.get("submissionDescription", ""),
                    "fileName": self.kaggle.names[token],
                    "status": "PENDING",
                    "submittedBy": USER,
                    "teamName": "The team",
                    "left": c.polls,
                    "data": data,
                }
            )
        return {"message": f"Successfully submitted to {c.title}", "ref": ref}

    def ListSubmissions(self, body: dict) -> dict:
        c = self.contest(body, "Permission 'competitions.participate' was denied")
        for one in c.submissions:
            if one["status"] == "PENDING" and one.get("left", 0) <= 0:
                judge(one, c)
            one["left"] = one.get("left", 0) - 1
        size, page = body.get("pageSize") or 20, body.get("page") or 1
        newest = list(reversed(c.submissions))[size * (page - 1) : size * page]
        return {
            "submissions": [
                {k: v for k, v in one.items() if k not in ("left", "data")} for one in newest
            ],
            "nextPageToken": "",
        }

    def GetSubmissionLimits(self, body: dict) -> dict:
        c = self.contest(body)
        if not c.limits:
            raise Refused(404, "no such endpoint: GetSubmissionLimits")
        return {
            "numToday": used_today(c),
            "numTotal": len(c.submissions) + c.used,
            "numAllowedNow": max(0, c.daily - used_today(c)),
            "limitedByTotal": False,
        }


def judge(one: dict, contest: Contest) -> None:
    try:
        scores = contest.scorer(one["data"])
    except ValueError as error:
        one |= {"status": "ERROR", "errorDescription": str(error)}
        return
    public, private = scores if isinstance(scores, tuple) else (scores, None)
    one |= {"status": "COMPLETE", "publicScore": f"{public:.5f}"} | (
        {"privateScore": f"{private:.5f}"} if private is not None and contest.show_private else {}
    )


def used_today(contest: Contest) -> int:
    return contest.used + sum(
        one["date"][:10] == stamp(datetime.now(timezone.utc))[:10] and one["status"] != "ERROR"
        for one in contest.submissions
    )


def stamp(when: datetime) -> str:
    return when.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def make_zip(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """The same bytes for the same files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 7, 1, 12, 0, 0)), data, method)
    return buffer.getvalue()
