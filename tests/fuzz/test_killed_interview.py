"""``lapal-ext select --interactive`` is killed at random steps and resumed: the file is the same as without a kill.

pytest -m slow tests/fuzz/test_killed_interview.py tests/study/test_experiment.py
"""

import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.fuzz.processes import HANGS, ROOT
from tests.fuzz.tally import count

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="sends SIGKILL")]
ANSWERS, KILLS = 30, 14
# Steps of one process before it is killed: it reads its files in twelve, and needs six more for each answer.
MOST_STEPS = 31
NAMES = ("ant", "bee", "cat")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(110) % 3
    features = torch.randn(110, 6, generator=generator) + 2.0 * torch.nn.functional.one_hot(targets, 6)
    np.save(tmp_path / "pool.npy", features[30:].half().numpy())
    np.save(tmp_path / "train.npy", features[:30].half().numpy())
    np.save(tmp_path / "labels.npy", targets[:30].numpy())
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return tmp_path


# Kills itself before it opens, moves or removes a file of a folder for the n-th time; never, if n is 0.
KILLED = """
import sys
from tests.fuzz.processes import kill_at_step
from lapal_ext.__main__ import main
if step := int(sys.argv[1]):
    kill_at_step(step, sys.argv[2])
sys.exit(main(sys.argv[3:]))
"""


class Interview:
    """The command with answers on its terminal; a row always gets the same answer."""

    def __init__(self, folder: Path, out: str, number: int, killed_at: int = 0) -> None:
        files = {"--pool": "pool.npy", "--features": "train.npy", "--labels": "labels.npy", "--classes": "names.txt"}
        options = [text for option in files.items() for text in option]
        command = [sys.executable, "-c", KILLED, str(killed_at), str(folder), "select", "--interactive", *options]
        command += ["--out", out, "--number", str(number)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder, env=environment, bufsize=0
        )

    def answer(self, how_many: int) -> int:
        """Answer ``how_many`` questions, or fewer if the process ends before; return their number."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        for given in range(how_many):
            text = b""
            while not text.endswith(b"label: "):
                byte = self.process.stdout.read(1)
                if not byte:
                    return given
                text += byte
            row = int(re.findall(rb"row (\d+);", text)[-1])
            self.process.stdin.write(NAMES[row % 3].encode() + b"\n" if row % 7 else b"skip\n")
        return how_many

    def ended(self) -> int:
        self.process.communicate(timeout=HANGS)
        return self.process.returncode


def answered(path: Path) -> int:
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def finish(folder: Path, out: str) -> bytes:
    left = ANSWERS - answered(folder / out)
    interview = Interview(folder, out, left)
    assert interview.answer(left) == left
    assert interview.ended() == 0
    return (folder / out).read_bytes()


def test_a_killed_and_resumed_run_ends_with_the_same_file(files: Path) -> None:
    wanted = finish(files, "whole.csv")
    draw, out = random.Random(1), files / "killed.csv"
    for _ in range(KILLS):
        before = answered(out)
        interview = Interview(files, out.name, ANSWERS, draw.randrange(1, MOST_STEPS))
        given = interview.answer(ANSWERS)
        assert interview.ended() == -signal.SIGKILL
        assert before <= answered(out) <= before + given
        count("killed", "interactive runs killed at random")
    assert answered(out) > 0
    assert finish(files, out.name) == wanted
    count("killed", "interactive runs that ended with the identical file")
