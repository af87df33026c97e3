"""A real Label Studio asks in our order: it is started, fed, answered over its API, exported and fed again.

pip install label-studio   # into an environment of its own, whose bin is on PATH
pytest -m slow tests/interop/test_label_studio_server.py
"""

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch

from lapal_ext.cli import main
from lapal_ext.interop.label_studio import read_tasks
from tests.interop.label_studio_export import CLASSES, CONFIG, choice
from tests.interop.label_studio_webhook import Follower, serve
from tests.interop.test_label_studio_webhook import told

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("label-studio") is None, reason="needs label-studio on PATH: pip install label-studio"
    ),
]

TOKEN = "0123456789abcdef0123456789abcdef01234567"
STARTS, N, NUMBER = 600.0, 60, 6  # seconds, tasks, tasks of a round
IMAGES = CONFIG.replace("<Text", "<Image").replace("$text", "$image")
SELECT = "select --pool pool.npy --label-config config.xml --classes-complete --out tasks.json"


class Server:
    """The API of Label Studio."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, method: str, path: str, body: object = None) -> Any:
        headers = {"Authorization": f"Token {TOKEN}", "Content-Type": "application/json"}
        content = None if body is None else json.dumps(body).encode()
        with urlopen(Request(f"{self.url}/api/{path}", content, headers, method=method)) as answer:
            return json.loads(answer.read() or "null")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("label_studio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    settings = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "SSRF_PROTECTION_ENABLED": "false",  # it refuses webhooks of this machine
        "WEBHOOK_TIMEOUT": "600",  # seconds that it waits for a webhook before it goes on
        "COLLECT_ANALYTICS": "0",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    options = f"--no-browser --host {url} --internal-host 127.0.0.1 --port {port} --enable-legacy-api-token"
    user = f"--username a@example.com --password secret123 --user-token {TOKEN}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["label-studio", "start", *options.split(), *user.split()],
            env=inherited | settings,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            made = Server(url)
            wait_for(made, process, folder / "log")
            yield made
        finally:
            process.terminate()
            process.wait()


def wait_for(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + STARTS
    while time.monotonic() < end:
        assert process.poll() is None, log.read_text()
        try:
            server.call("GET", "projects/")
        except (HTTPError, URLError, ConnectionError):
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"Label Studio did not start: {log.read_text()[-2000:]}")


class Project:
    """A project of N tasks, and the features and classes of its tasks, in the current folder."""

    def __init__(self, server: Server, config: str, tasks: object) -> None:
        self.server = server
        settings = {"title": "lapal", "label_config": config, "sampling": "Uncertainty sampling"}
        self.id = server.call("POST", "projects/", settings)["id"]
        self.path = f"projects/{self.id}"
        server.call("POST", f"{self.path}/import", tasks)
        Path("config.xml").write_text(config)

    def export(self) -> str:
        content = self.server.call("GET", f"{self.path}/export?exportType=JSON&download_all_tasks=true")
        Path("project.json").write_text(json.dumps(content))
        return "project.json"

    def feed(self, predictions: list[Any]) -> None:
        """As the README says."""
        version = {"model_version": "lapal_ext"}
        self.server.call("DELETE", f"{self.path}/model-versions", version)
        created = self.server.call("POST", f"{self.path}/import/predictions", predictions)
        assert created == {"created": len(predictions)}
        self.server.call("PATCH", f"{self.path}/", version)

    def next(self) -> int:
        number: int = self.server.call("GET", f"{self.path}/next")["id"]
        return number

    def annotate(self, task: int, label: str | None, **fields: Any) -> int:
        body = {"result": [] if label is None else [choice(label)], "was_cancelled": label is None, **fields}
        number: int = self.server.call("POST", f"tasks/{task}/annotations/", body)["id"]
        return number

    def shown(self) -> list[int]:
        """The tasks of a tab of the data manager, by the lowest score of their predictions."""
        view = {"project": self.id, "data": {"ordering": ["tasks:predictions_score"]}}
        tab = self.server.call("POST", "dm/views/", view)["id"]
        return [task["id"] for task in self.server.call("GET", f"tasks?view={tab}&page_size={N}")["tasks"]]


@pytest.fixture
def labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The true classes of the tasks, whose features are in ``pool.npy``."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    numbers = np.arange(N) % len(CLASSES)
    features = generator.normal(size=(N, 5)).astype(np.float32)
    features[np.arange(N), numbers] += 2.0
    np.save("pool.npy", features)
    return [CLASSES[number] for number in numbers]


def test_three_rounds_with_texts(server: Server, labels: list[str]) -> None:
    project = Project(server, CONFIG, [{"data": {"text": f"text {row}"}, "meta": {"page": row}} for row in range(N)])
    expected: dict[int, str | None] = {}
    for number in range(3):
        tasks = read_tasks(project.export(), CONFIG)
        assert {answer.row: answer.label for answer in tasks.answers} == expected
        assert main([*SELECT.split(), "--label-studio", "project.json", "--number", str(NUMBER)]) == 0
        chosen = json.loads(Path("tasks.json").read_text())
        order = [task["id"] for task in chosen]
        assert not {tasks.rows[task] for task in order} & expected.keys()
        assert [task["meta"] for task in chosen] == [{"page": tasks.rows[task]} for task in order]
        project.feed([task["predictions"][0] for task in chosen])
        assert project.shown()[:NUMBER] == order
        for place, task in enumerate(order):
            assert project.next() == task
            row = tasks.rows[task]
            expected[row] = None if place == number else labels[row]
            annotation = project.annotate(task, expected[row] if place != 4 else CLASSES[0])
            if place == 4:  # a slip, which is corrected
                server.call("PATCH", f"annotations/{annotation}/", {"result": [choice(labels[row])]})
    assert len(expected) == 3 * NUMBER
    tasks = read_tasks(project.export(), CONFIG)
    assert {answer.row: answer.label for answer in tasks.answers} == expected


def test_rounds_of_images_that_are_imported_one_after_another(server: Server, labels: list[str]) -> None:
    """Each round imports the file that is written, and the project holds the chosen tasks alone."""
    rows = [f"scan-{row},/data/{row}.png" for row in range(N)]
    Path("items.csv").write_text("\n".join(["id,image", *rows]) + "\n")
    Path("project.json").write_text("[]")
    project, done = None, dict[str, str]()
    for _ in range(3):
        Path("config.xml").write_text(IMAGES)
        options = ["--label-studio", "project.json", "--number", str(NUMBER), "--items", "items.csv"]
        assert main([*SELECT.split(), *options]) == 0
        chosen = json.loads(Path("tasks.json").read_text())
        if project is None:
            project = Project(server, IMAGES, chosen)
        else:
            server.call("POST", f"{project.path}/import", chosen)
        assert server.call("GET", f"{project.path}/")["model_version"] == "lapal_ext"
        for task in chosen:
            number = project.next()
            name = server.call("GET", f"tasks/{number}/")["data"]["id"]
            assert name == task["data"]["id"]
            done[name] = labels[int(name.removeprefix("scan-"))]
            project.annotate(number, done[name])
        names = [f"scan-{row}" for row in range(N)]
        data = [{"id": name, "image": ""} for name in names]
        tasks = read_tasks(project.export(), IMAGES).for_pool(names, data)
        assert {names[answer.row]: answer.label for answer in tasks.answers} == done
    assert len(done) == 3 * NUMBER


def test_several_annotators_are_asked_for_chosen_tasks_alone(server: Server, labels: list[str]) -> None:
    project = Project(server, CONFIG, [{"data": {"text": str(row)}} for row in range(N)])
    ids = read_tasks(project.export(), CONFIG).ids
    other = server.call("POST", "users/", {"email": "b@example.com", "username": "b"})["id"]
    project.annotate(ids[0], "card", completed_by=other)
    project.annotate(ids[0], "cash")
    project.annotate(ids[1], "loan")
    tasks = read_tasks(project.export(), CONFIG)
    assert {answer[:3] for answer in tasks.answers} == {(0, "card", other), (0, "cash", 1), (1, "loan", 1)}
    assert main([*SELECT.split(), "--label-studio", "project.json", "--number", str(NUMBER)]) == 0
    chosen = json.loads(Path("tasks.json").read_text())
    project.feed([task["predictions"][0] for task in chosen])
    left = {task["id"] for task in chosen}
    while left:
        number = project.next()
        left.remove(number)
        project.annotate(number, labels[tasks.rows[number]])


def test_a_webhook_brings_the_next_question_after_every_answer(server: Server, labels: list[str]) -> None:
    project = Project(server, CONFIG, [{"data": {"text": str(row)}} for row in range(N)])
    tasks = read_tasks(project.export(), CONFIG)
    follower = Follower(tasks, torch.from_numpy(np.load("pool.npy")))
    webhook = serve(0, follower, f"{server.url}/api/{project.path}", TOKEN)
    thread = threading.Thread(target=webhook.serve_forever)
    thread.start()
    try:
        actions = ["ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED"]
        url = f"http://localhost:{webhook.server_port}"
        server.call(
            "POST", "webhooks/", {"project": project.id, "url": url, "send_for_all_actions": False, "actions": actions}
        )
        first = project.annotate(tasks.ids[0], labels[0])
        expected = {(0, labels[0], 1)}
        for place in range(2 * NUMBER):
            row = int(follower.selector.ask())
            assert project.next() == tasks.ids[row]
            label = labels[row] if place % 5 else None
            project.annotate(tasks.ids[row], label)
            expected |= {(row, label, 1)} if label else set()
            assert set(told(follower)) == expected
        server.call("PATCH", f"annotations/{first}/", {"result": [choice("loan")]})
        assert set(told(follower)) == expected - {(0, labels[0], 1)} | {(0, "loan", 1)}
        server.call("DELETE", f"annotations/{first}/")
        assert set(told(follower)) == expected - {(0, labels[0], 1)}
        body = {"selectedItems": {"all": True, "excluded": []}}
        server.call("POST", f"dm/actions?id=delete_tasks_annotations&project={project.id}", body)
        assert told(follower) == []
        assert len(server.call("GET", f"{project.path}/model-versions")) == 1
    finally:
        webhook.shutdown()
        thread.join()
        webhook.server_close()
