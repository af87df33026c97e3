"""``fit_map`` on many rows takes no more than twice the memory of their features."""

import subprocess
import sys
from pathlib import Path

import pytest

import lapal_ext
from tests.fuzz.processes import HANGS

MEASURE = """
import resource, torch
from lapal_ext import LastLayerLaplace

def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

generator = torch.Generator().manual_seed(0)
x = torch.randn({rows}, 384, generator=generator)
y = (x[:, :4] + torch.randn({rows}, 4, generator=generator)).argmax(1)
LastLayerLaplace.fit_map(x[:9000], y[:9000], 4)  # loads libraries, and takes buffers of a tile
before = peak()
LastLayerLaplace.fit_map(x, y, 4)
print((peak() - before) / (4 * x.numel()))
"""


def grown(rows: int) -> float:
    """The memory that a fit takes beside its features, in their own size."""
    environment = {"PYTHONPATH": str(Path(lapal_ext.__file__).parents[1]), "OMP_NUM_THREADS": "1", "PATH": ""}
    command = [sys.executable, "-c", MEASURE.format(rows=rows)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=HANGS)
    return float(done.stdout)


def test_a_fit_stays_within_twice_the_memory_of_its_features() -> None:
    assert grown(40_000) < 2.0


@pytest.mark.slow
def test_a_fit_to_150000_rows_does_too() -> None:
    assert grown(150_000) < 2.0
