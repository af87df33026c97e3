"""The examples in the help of all commands: each command has one, and those that are quick run as they are."""

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import lapal_ext
from lapal_ext.cli import _parser, main


def parsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = {parser.prog: parser}
    for action in parser._subparsers._actions if parser._subparsers else ():
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                found |= parsers(inner)
    return found


def example_of(parser: argparse.ArgumentParser) -> list[str]:
    """The indented lines below the first line that begins with "example"."""
    lines = parser.format_help().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("example"))
    rest = lines[start + 1 :]
    end = next((number for number, line in enumerate(rest) if not line.startswith("  ")), len(rest))
    return [line.strip() for line in rest[:end]]


ALL = parsers(_parser())


@pytest.mark.parametrize("name", ALL)
def test_every_command_has_an_example_that_it_understands(name):
    lines = example_of(ALL[name])
    commands = [line for line in lines if line.startswith("lapal-ext")]
    assert commands
    for command in commands:
        _parser().parse_args(command.split()[1:])
    assert commands[-1].startswith(name)


@pytest.mark.parametrize("command", ["extract", "select", "predict", "doctor"])
def test_examples_run_as_they_are(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    package = str(Path(lapal_ext.__file__).parents[1])
    for line in example_of(ALL[f"lapal-ext {command}"]):
        if line.startswith("lapal-ext"):
            assert main(line.split()[1:]) == 0
            continue
        shell = line.replace("python -c", f"{sys.executable} -c")
        subprocess.run(["bash", "-c", shell], env={"PYTHONPATH": package}, check=True)
    assert command == "doctor" or list(tmp_path.glob("*.csv"))
