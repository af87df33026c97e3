"""Exports as Label Studio 1.23 writes them, and the label config of their project."""

import json
from pathlib import Path
from typing import Any

CLASSES = ("card", "cash", "loan")
CONFIG = """<View>
  <Text name="text" value="$text"/>
  <Choices name="topic" toName="text" choice="single" required="true">
    <Choice value="Card" alias="card"/><Choice value="cash"/><Choice value="loan"/>
  </Choices>
  <TextArea name="why" toName="text"/>
</View>"""


def choice(*labels: str, name: str = "topic") -> dict[str, Any]:
    return {
        "id": "aBcD1",
        "from_name": name,
        "to_name": "text",
        "type": "choices",
        "origin": "manual",
        "value": {"choices": list(labels)},
    }


def note(
    number: int, *results: dict[str, Any] | str, user: object = 1, second: int | None = None, **fields: Any
) -> Any:
    """An annotation; a text stands for the choice of a class."""
    made = f"2026-11-30T14:47:{number if second is None else second:02}.645104Z"
    return {
        "id": number,
        "completed_by": user,
        "result": [choice(result) if isinstance(result, str) else result for result in results],
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2026-11-30T14:47:00.000104Z",
        "updated_at": made,
        "draft_created_at": None,
        "lead_time": 4.2,
        "prediction": {},
        "result_count": len(results),
        "unique_id": f"543936ce-0b09-4dc1-871b-{number:012}",
        **fields,
    }


def task(number: int, *notes: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {
        "id": number,
        "annotations": [{**entry, "task": number} for entry in notes],
        "drafts": [],
        "predictions": [7],
        "data": {"text": f"text {number}", **data},
        "meta": {"origin": "bank"},
        "created_at": "2026-11-30T14:47:22.987475Z",
        "inner_id": number - 100,
        "total_annotations": len(notes),
        "project": 1,
    }


def export(tasks: Any, path: str = "project.json") -> str:
    Path(path).write_text(json.dumps(tasks), encoding="utf-8")
    return path
