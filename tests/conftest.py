"""Options and fixtures for all tests. Helpers: budget.py (tolerances), draws.py, layouts.py, native.py."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis.internal.conjecture import providers

from lapal_ext.ops import replace_ops
from tests.draws import Draw
from tests.fuzz import tally


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        choices=("cpu", "cuda", "emulated"),
        help="where the ops under test run; emulated: the CUDA kernels, on the CPU (tests/cuda_emulator)",
    )


# The number of slow tests that were deselected; with `pytest -n` every process counts all of them.
LEFT_OUT = pytest.StashKey[int]()


# Files whose tests share something that takes long to make: with ``pytest -n``, one process runs the whole file.
TOGETHER = (
    "tests/packaging/test_build.py",
    "tests/pool/sharding/test_failures.py",
    "tests/pool/sharding/test_picks.py",
    "tests/study/test_experiment.py",
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Schedule files of ``TOGETHER`` as a whole, else single tests in slow runs and functions in the quick run."""
    from xdist.scheduler import LoadScopeScheduling

    if config.option.dist != "load":  # the mode that `-n` selects
        return None

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if file in TOGETHER:
                return file
            return nodeid.partition("[")[0] if config.option.markexpr == "not slow" else nodeid

    return Scheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = 0
    # hypothesis also draws numbers and texts that occur in the modules imported so far, so that a test would draw other
    # cases after other tests (test_drawn_cases.py). It has no setting for that.
    if hasattr(providers, "Constants"):  # private; versions that do not have it draw no such numbers
        providers._get_local_constants = providers.Constants  # type: ignore[attr-defined]
    # The problems are small: on a busy machine, a second thread makes them many times slower, not faster.
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same for the processes that tests start


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items and items[0].config.option.markexpr == "not slow":
        items[0].config.stash[LEFT_OUT] += sum(item.get_closest_marker("slow") is not None for item in items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With ``pytest -n``, every worker sends its counts to the process that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["counted"] = tally.counted()
        session.config.workeroutput["left_out"] = session.config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if hasattr(node, "workeroutput"):  # a worker that died has none
        tally.add_counted(node.workeroutput["counted"])
        node.config.stash[LEFT_OUT] = node.workeroutput["left_out"]  # every process deselects the same


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a line for each campaign with its counts, and one with the number of deselected slow tests."""
    if counts := tally.lines():
        terminalreporter.section("campaigns")
        for line in counts:
            terminalreporter.write_line(line)
    if left_out := terminalreporter.config.stash[LEFT_OUT]:
        terminalreporter.section("left out")
        terminalreporter.write_line(f"{left_out:,} slow tests, which `pytest -n 2 -m slow` runs: see tests/README.md")


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.fail("--device cuda was asked for, and torch finds no CUDA device")
    return "cpu" if name == "emulated" else name


@pytest.fixture(scope="session")
def kernels_raise(request: pytest.FixtureRequest) -> bool:
    """Whether kernels raise for an index out of range; CUDA kernels cannot, and give NaN."""
    return request.config.getoption("--device") == "cpu"


@pytest.fixture(scope="session", autouse=True)
def emulate_where_asked(request: pytest.FixtureRequest) -> Iterator[None]:
    """With --device emulated, every op that has a CUDA kernel runs it on the emulator instead of its CPU kernel."""
    if request.config.getoption("--device") != "emulated":
        yield
        return
    from tests.cuda_emulator.build import KERNELS, emulated

    with replace_ops({name: emulated(name).overload for name in KERNELS}):
        yield


@pytest.fixture(params=[torch.float32, torch.float64], ids=["f32", "f64"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def draw() -> Draw:
    """Arguments from the same seed in every test, whatever ran before it."""
    return Draw(seed=0)


@pytest.fixture
def generator(draw: Draw) -> torch.Generator:
    return draw.generator
