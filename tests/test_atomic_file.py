"""Files that are replaced as a whole, and what killed processes leave of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lapal_ext import atomic_file
from lapal_ext.atomic_file import replace_file

KILLED = """
import os, signal, sys
from pathlib import Path
from lapal_ext.atomic_file import replace_file

def write(scratch):
    scratch.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

replace_file(Path(sys.argv[1]), write)
"""
WAITING = """
import sys
from pathlib import Path
from lapal_ext.atomic_file import replace_file

def write(scratch):
    scratch.write_text("whole")
    print("written", flush=True)
    sys.stdin.readline()

replace_file(Path(sys.argv[1]), write)
"""


@pytest.fixture(autouse=True)
def _as_a_new_process():
    """A process looks for left-over files once for each path."""
    atomic_file._delete_left_over.cache_clear()


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
def test_the_next_run_deletes_what_a_killed_one_left(tmp_path: Path) -> None:
    path = tmp_path / "out (1).csv"
    path.write_text("old")
    subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    [left] = hidden(tmp_path)
    number, machine = left.split(".")[1], left.split(".")[3]
    kept = [  # of another machine, of another file, without the mark, of a process that runs
        left.replace(machine, "01234567"),
        left.replace("(1)", "(2)"),
        left.replace(".lapal-ext", ""),
        left.replace(f".{number}.", ".1.", 1),
    ]
    for name in kept:
        (tmp_path / name).write_text("kept")
    assert path.read_text() == "old"
    replace_file(path, lambda scratch: scratch.write_text("new"))
    assert path.read_text() == "new"
    assert hidden(tmp_path) == sorted(kept)


def test_a_file_that_another_process_writes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    command = [sys.executable, "-c", WAITING, path]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        replace_file(path, lambda scratch: scratch.write_text("mine"))
        assert len(hidden(tmp_path)) == 1
        process.communicate("go on\n")
    assert process.returncode == 0
    assert path.read_text() == "whole"
    assert hidden(tmp_path) == []
