"""The example of a webhook: it is sent what Label Studio sends, and the selector knows what stands in the project."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import torch

from lapal_ext.interop.label_studio import read_tasks
from tests.draws import Draw
from tests.interop import label_studio_webhook
from tests.interop.label_studio_export import CLASSES, CONFIG, export, note, task
from tests.interop.label_studio_webhook import Follower, serve

N, PROJECT = 30, "/api/projects/4"
README = Path(label_studio_webhook.__file__).parents[2] / "lapal_ext" / "cli" / "README.md"


@contextmanager
def served(server: HTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Project(BaseHTTPRequestHandler):
    """Takes what is sent to the project in Label Studio."""

    def take(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Authorization"] == "Token secret"
        self.server.taken.append((self.command, self.path, body))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.take()

    def do_PATCH(self) -> None:
        self.take()

    def do_DELETE(self) -> None:
        self.take()

    def log_message(self, *_: object) -> None:
        pass


def make_follower(*notes: dict[str, Any]) -> Follower:
    """Of a project of N tasks, the last of which have these annotations."""
    tasks = [task(100 + row) for row in range(N - len(notes))]
    tasks += [task(100 + N - len(notes) + place, entry) for place, entry in enumerate(notes)]
    features = Draw(0).normal(N, 4).float()
    return Follower(read_tasks(export(tasks), CONFIG), features)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BaseHTTPRequestHandler, "log_message", lambda *_: None)


def event(action: str, number: int, row: int = -1, label: str | None = None, user: int = 1, version: str = "") -> Any:
    """What Label Studio 1.23 sends; a deleted annotation has its id alone, and a skipped one may keep its choice."""
    project = {"id": 4, "title": "bank", "label_config": CONFIG, "model_version": version, "sampling": "Uncertainty"}
    if action == "ANNOTATIONS_DELETED":
        return {"action": action, "annotations": [{"id": number}], "project": project}
    said = note(number, label or "cash", user=user, was_cancelled=label is None, project=4)
    shown = {**task(100 + row), "is_labeled": True, "overlap": 1}
    return {"action": action, "annotation": {**said, "task": 100 + row}, "task": shown, "project": project}


CREATED, UPDATED, DELETED = "ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED"
HISTORY = [
    event(CREATED, 1, 3, "card"),
    event(CREATED, 2, 5, "cash"),
    event(CREATED, 3, 5, "loan", user=2),
    event(UPDATED, 1, 3, "loan"),
    event(CREATED, 4, 7, None),
    event(CREATED, 5, 8, None),
    event(UPDATED, 5, 8, "card"),
    event(CREATED, 6, 9, "card"),
    event(UPDATED, 6, 9, None),
    event(DELETED, 2),
    event(CREATED, 7, 11, "cash"),
    event(CREATED, 8, 11, None, user=2),
    event(DELETED, 8),
    event(DELETED, 4),
    event(DELETED, 50),
    event(CREATED, 9, 12, "card"),
    event(DELETED, 9),
]


STANDING = {(3, "loan", 1), (5, "loan", 2), (8, "card", 1), (11, "cash", 1)}  # and row 9 is skipped


def told(follower: Follower) -> list[tuple[int, str, int]]:
    """The answers that stand in the selector, in order."""
    known = follower.selector.answers
    names = [CLASSES[label] for label in known.labels]
    return list(zip(known.rows.tolist(), names, known.annotators.tolist(), strict=True))


def send(url: str, sent: dict[str, Any]) -> int:
    with urlopen(Request(url, json.dumps(sent).encode(), {"Content-Type": "application/json"})) as answer:
        status: int = answer.status
        return status


@pytest.fixture
def project() -> Iterator[tuple[str, list[Any]]]:
    """The address of a project, and what was sent to it."""
    server = HTTPServer(("localhost", 0), Project)
    server.taken = []  # type: ignore[attr-defined]
    with served(server) as url:
        yield url + PROJECT, server.taken  # type: ignore[attr-defined]


def test_what_stands_in_the_project_stands_in_the_selector(project: tuple[str, list[Any]]) -> None:
    followed = make_follower()
    with served(serve(0, followed, project[0], "secret")) as url:
        assert [send(url, sent) for sent in HISTORY] == [204] * len(HISTORY)
    assert set(told(followed)) == STANDING
    fresh = make_follower().selector
    for row, label, annotator in told(followed):
        fresh.tell(row, label, annotator=annotator)
    fresh.skip(9)
    assert torch.equal(followed.selector.posterior.mean, fresh.posterior.mean)
    rest = N - len(STANDING) - 1
    assert followed.selector.ask(rest).tolist() == fresh.ask(rest).tolist()


def test_every_event_brings_the_order_that_the_selector_asks_in(project: tuple[str, list[Any]]) -> None:
    followed = make_follower()
    with served(serve(0, followed, project[0], "secret")) as url:
        for place, sent in enumerate(HISTORY[:4]):
            send(
                url,
                {**sent, "project": {**sent["project"], "model_version": ("", "lapal_ext 1", "other", None)[place]}},
            )
            made, chosen, *deleted = project[1]
            assert made[:2] == ("POST", f"{PROJECT}/import/predictions")
            assert [p["task"] - 100 for p in made[2]] == followed.selector.ask(10).tolist()
            assert [p["score"] for p in made[2]] == [place / 10 for place in range(1, 11)]
            version = {p["model_version"] for p in made[2]}
            assert chosen == ("PATCH", PROJECT, {"model_version": version.pop()})
            assert not version
            expected = [("DELETE", f"{PROJECT}/model-versions", {"model_version": "lapal_ext 1"})]
            assert deleted == (expected if place == 1 else [])
            project[1].clear()


def test_it_begins_with_what_the_export_has(project: tuple[str, list[Any]]) -> None:
    followed = make_follower(note(1, "card"), note(2, was_cancelled=True), note(3, "loan", user=2))
    assert told(followed) == [(N - 3, "card", 1), (N - 1, "loan", 2)]
    with served(serve(0, followed, project[0], "secret")) as url:
        send(url, event(DELETED, 1))
        send(url, event(UPDATED, 2, N - 2, "cash"))
    assert set(told(followed)) == {(N - 1, "loan", 2), (N - 2, "cash", 1)}


def test_nothing_is_sent_when_every_task_has_an_answer(project: tuple[str, list[Any]]) -> None:
    followed = make_follower(*(note(number, "card") for number in range(N - 1)))
    with served(serve(0, followed, project[0], "secret")) as url:
        send(url, event(CREATED, 99, 0, "card"))
        assert project[1] == []
        send(url, event(DELETED, 99))
    assert [p["task"] for p in project[1][0][2]] == [100]


def test_the_readme_shows_this_file() -> None:
    assert f"```python\n{Path(label_studio_webhook.__file__).read_text()}```" in README.read_text(encoding="utf-8")
    assert len(Path(label_studio_webhook.__file__).read_text().splitlines()) <= 80
