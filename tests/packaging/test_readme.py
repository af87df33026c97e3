"""README's blocks run, in order, as one session in one folder; its other commands are ones that exist."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lapal_ext.cli
from tests.fuzz.processes import HANGS

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
SETUP = ("# the main job", "# the tests")  # .ci/run runs them
PROGRAMS = {"lapal-ext": ["-m", "lapal_ext"], "torchrun": ["-m", "torch.distributed.run"]}


def text() -> str:
    return README.read_text(encoding="utf-8")


def run(command: str) -> str:
    """What a command prints; its program is that of this environment."""
    program, *arguments = shlex.split(command)
    done = subprocess.run(
        [sys.executable, *PROGRAMS[program], *arguments], capture_output=True, text=True, check=False, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(path: str) -> list[str]:
    """Rows of a label file; without kernels its utilities differ in the last digit from shard to shard."""
    return [line.partition(",")[0] for line in Path(path).read_text().splitlines()]


def test_every_block_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session: dict[str, object] = {}
    printed = ""
    with torch.random.fork_rng():  # what a reader types draws from the global generator
        torch.manual_seed(0)
        for language, block in BLOCK.findall(text()):
            if language == "python":
                exec(compile(block, str(README), "exec"), session)
            elif not block.startswith(SETUP):
                printed += run(block)
    assert "tensor([" in capsys.readouterr().out
    assert session["batch"].indices.shape == (10,)
    assert session["losses"].shape == (len(session["batches"]),)
    assert session["scores"].shape == (1747,)
    assert printed.count("Rows chosen: 10") == 2
    assert rows_of("shared.csv") == rows_of("to_label.csv")


def commands() -> list[str]:
    """Indented lines that begin with the name of a program, and what follows a backslash."""
    lines = re.findall(r"^    ((?:lapal-ext|python -m) (?:.*\\\n)*.*)$", text(), flags=re.MULTILINE)
    return [part.strip() for line in lines for part in line.replace("\\\n", " ").split("&&")]


@pytest.mark.parametrize("command", commands())
def test_every_other_command_is_one_that_exists(command: str) -> None:
    program, *arguments = shlex.split(command.split("#", maxsplit=1)[0])
    if program == "lapal-ext":
        lapal_ext.cli._parser().parse_args(arguments)
    else:
        module = README.parent / f"{arguments[1].replace('.', '/')}.py"
        assert module.exists()


def test_every_file_that_is_named_exists() -> None:
    for path in re.findall(r"`((?:csrc|tests|benchmarks)/[\w./]*)`|\]\((?!https?:)([^)]+)\)", text()):
        name = path[0] or path[1]
        assert (README.parent / name).exists(), name


def test_every_module_that_is_named_exists() -> None:
    for name in re.findall(r"`python -m (benchmarks\.\w+)", text()):
        assert (README.parent / f"{name.replace('.', '/')}.py").exists(), name
