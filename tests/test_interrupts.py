"""Ctrl-C while the command imports torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lapal_ext

# A torch that is interrupted as soon as it is imported.
TORCH = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n"
SCRIPT = "import sys\nsys.argv[0] = 'bin/lapal-ext'\nfrom lapal_ext.__main__ import main\nsys.exit(main())\n"
ROOT = Path(lapal_ext.__file__).parents[1]


def interrupted(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "torch.py").write_text(TORCH)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
@pytest.mark.parametrize("arguments", [("-m", "lapal_ext", "--version"), ("-c", SCRIPT)])
def test_the_command_ends_without_a_traceback(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = interrupted(tmp_path, *arguments)
    assert done.returncode == 130
    assert done.stderr == "lapal-ext: interrupted\n"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_a_program_that_imports_the_package_gets_the_exception(tmp_path: Path) -> None:
    program = "try:\n    import lapal_ext\nexcept KeyboardInterrupt:\n    print('mine')\n"
    assert interrupted(tmp_path, "-c", program).stdout == "mine\n"


def test_afterwards_the_command_gets_the_exception() -> None:
    program = (
        "import sys; sys.argv = ['lapal-ext', '--version']\n"
        "import signal, lapal_ext, lapal_ext.interrupts as interrupts\n"
        "before = signal.getsignal(signal.SIGINT); interrupts.handle_again()\n"
        "print(before is interrupts._end, signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"
