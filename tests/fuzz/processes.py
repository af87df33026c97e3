"""Other processes: with other settings, or killed while they work."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def python(code: str, *arguments: object, environment: Mapping[str, str] | None = None, timeout: float = 120) -> str:
    """Run ``code`` in a new Python, and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """SIGKILL a process after a while; return whether it was still there."""
    time.sleep(seconds)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return alive
