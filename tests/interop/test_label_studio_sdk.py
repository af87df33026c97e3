"""Label Studio's own reader of exports and validator of predictions agree with ours."""

import json
from pathlib import Path

import numpy as np
import pytest

from lapal_ext.errors import StorageError
from lapal_ext.interop.label_studio import predictions, read_control, read_tasks, write_tasks
from tests.interop.label_studio_export import CONFIG, choice, export, note, task

pytest.importorskip("label_studio_sdk", reason='needs label-studio-sdk: pip install "lapal_ext[label-studio]"')

from label_studio_sdk.converter.converter import Converter
from label_studio_sdk.label_interface import LabelInterface
from label_studio_sdk.label_interface.objects import PredictionValue

IMAGE = CONFIG.replace("<Text", "<Image").replace("$text", "$image").replace('"text"', '"scan"')
COMMENT = {"from_name": "why", "to_name": "text", "type": "textarea", "value": {"text": ["?"]}, "id": "b"}
TASKS = [
    task(101, note(1, "card"), note(2, "cash", user=2), image="/data/1.png"),
    task(102, note(3, COMMENT, "loan", user=2), image="/data/2.png"),
    task(103, note(4, "cash", was_cancelled=True), image="/data/3.png"),
    task(104, image="/data/4.png"),
    task(105, image="/data/5.png"),
]
SHARES = np.array([[0.25, 0.5, 0.25], [0.125, 0.125, 0.75]])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_its_converter_reads_the_same_answers() -> None:
    read = read_tasks(export(TASKS), CONFIG)
    converted = Converter(CONFIG, ".", download_resources=False).iter_from_json_file("project.json")
    theirs = {
        (item["id"], item["output"]["topic"][0]["choices"][0], item["completed_by"])
        for item in converted
        if item["output"]
    }
    assert {(read.ids[a.row], a.label, a.annotator) for a in read.answers if a.label is not None} == theirs
    assert len(theirs) == 3


@pytest.mark.parametrize(
    ("kind", "name", "text"), [("JSON_MIN", "result.json", "is a JSON-MIN export"), ("CSV", "result.csv", "got CSV")]
)
def test_exports_that_lose_answers_are_refused(kind: str, name: str, text: str) -> None:
    Converter(CONFIG, ".", download_resources=False).convert(export(TASKS), "out", kind, is_dir=False)
    with pytest.raises(StorageError, match=text):
        read_tasks(Path("out") / name, CONFIG)


@pytest.mark.parametrize("config", [CONFIG, IMAGE], ids=["text", "image"])
def test_it_reads_the_same_label_config(config: str) -> None:
    theirs, ours = LabelInterface(config), read_control(config)
    tag = theirs.get_control(ours.name)
    assert (tag.to_name, tuple(tag.labels)) == ([ours.to_name], ours.classes)
    assert theirs.get_object(ours.to_name).value_name == ours.field


@pytest.mark.parametrize("config", [CONFIG, IMAGE], ids=["text", "image"])
def test_its_validator_accepts_what_is_written(config: str) -> None:
    interface = LabelInterface(config)
    notes = TASKS if config == CONFIG else TASKS[3:]
    tasks = read_tasks(export(notes), config)
    rows = [len(notes) - 1, len(notes) - 2]
    write_tasks("out.json", tasks, rows, SHARES)
    for entry, expected in zip(json.loads(Path("out.json").read_text()), ["cash", "loan"], strict=True):
        [prediction] = entry["predictions"]
        assert interface.validate_prediction(prediction, return_errors=True) == []
        assert interface.validate_task({"data": entry["data"]})
        assert PredictionValue(**prediction).result[0]["value"] == {"choices": [expected]}
    [empty] = predictions(tasks, [0], None)
    assert interface.validate_prediction(empty, return_errors=True) == []


def test_its_validator_refuses_what_is_wrong() -> None:
    [prediction] = predictions(read_tasks(export(TASKS), CONFIG), [3], SHARES[:1])
    result = prediction["result"][0]
    for wrong in (choice("Card"), {**result, "from_name": "mood"}, {**result, "type": "labels"}):
        assert LabelInterface(CONFIG).validate_prediction({**prediction, "result": [wrong]}, return_errors=True)
    assert LabelInterface(CONFIG).validate_prediction({**prediction, "score": 2.0}, return_errors=True)
