"""python label_studio_webhook.py project.json config.xml pool.npy http://localhost:8080 TOKEN PROJECT_ID"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import torch

from lapal_ext import LastLayerLaplace, SequentialSelector
from lapal_ext.interop.label_studio import Answer, Tasks, predictions, read_tasks
from lapal_ext.posterior.calibration import fit_temperature


class Follower:
    def __init__(self, tasks: Tasks, features: torch.Tensor) -> None:
        classes = tasks.control.classes
        self.tasks, self.features = tasks, features
        self.prior = LastLayerLaplace.untrained(features, len(classes), class_names=classes)
        self.selector = SequentialSelector(self.prior, features, "uherding")
        self.standing: dict[int, Answer] = {}  # by the id of the annotation
        for answer in tasks.answers:
            self.replace(answer.annotation, answer)

    def replace(self, annotation: int, answer: Answer | None) -> None:
        before = self.standing.pop(annotation, None)
        said = [] if answer is None else [answer]
        if before is not None and (answer is None or None in (before.label, answer.label)):
            self.selector.forget(before.row)  # with what others said about the row, which is then said again
            said = [other for other in self.standing.values() if other.row == before.row] + said
        for row, label, annotator, _ in said:
            if label is None:
                self.selector.skip(row)
            else:
                self.selector.tell(row, label, annotator=annotator)  # corrects what this annotator said before
        if answer is not None:
            self.standing[annotation] = answer

    def scores(self, version: str, number: int = 10) -> list[dict]:
        left = len(self.tasks.exported) - len({answer.row for answer in self.standing.values()})
        if left == 0:
            return []
        rows, known = self.selector.ask(min(number, left)), self.selector.answers
        temperature = fit_temperature(self.prior, self.features[known.rows], known.labels)
        shares = (self.selector.posterior.predict_logits(self.features[rows]) / temperature).softmax(dim=1)
        return predictions(self.tasks, rows, shares if len(known.rows) else None, model_version=version)


def serve(port: int, follower: Follower, project: str, token: str) -> HTTPServer:
    def send(method: str, path: str, body: object) -> None:
        headers = {"Authorization": f"Token {token}", "Content-Type": "application/json"}
        urlopen(Request(project + path, json.dumps(body).encode(), headers, method=method)).close()

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if event["action"] in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED"):
                follower.replace(event["annotation"]["id"], follower.tasks.answer(event["annotation"]))
            for gone in event.get("annotations", []):  # of ANNOTATIONS_DELETED
                follower.replace(gone["id"], None)
            before, version = event["project"]["model_version"] or "", f"lapal_ext {time.time_ns()}"
            if scores := follower.scores(version):
                send("POST", "/import/predictions", scores)
                send("PATCH", "", {"model_version": version})
                if before.startswith("lapal_ext"):
                    send("DELETE", "/model-versions", {"model_version": before})
            self.send_response(204)
            self.end_headers()

    return HTTPServer(("localhost", port), Webhook)


if __name__ == "__main__":
    export, config, pool, url, key, identity = sys.argv[1:]
    start = Follower(read_tasks(export, Path(config).read_text()), torch.from_numpy(np.load(pool)))
    serve(8000, start, f"{url}/api/projects/{identity}", key).serve_forever()
