"""README's Python blocks run, in order, as one session."""

import re
from pathlib import Path

import pytest
import torch

README = Path(__file__).parent.parent / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def test_every_python_block_runs(capsys: pytest.CaptureFixture[str]) -> None:
    session: dict[str, object] = {}
    with torch.random.fork_rng():  # what a reader types draws from the global generator
        for block in python_blocks():
            exec(compile(block, str(README), "exec"), session)
    assert "tensor([" in capsys.readouterr().out
    assert session["batch"].indices.shape == (10,)
    assert session["losses"].shape == (len(session["batches"]),)
    assert session["scores"].shape == (1747,)


def test_every_file_that_is_named_exists() -> None:
    text = README.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:csrc|tests|benchmarks)/[\w./]*)`|\]\((?!https?:)([^)]+)\)", text):
        name = path[0] or path[1]
        assert (README.parent / name).exists(), name
