"""What every test may ask for. Helpers: budget.py (tolerances), draws.py, layouts.py, native.py."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

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


def pytest_configure() -> None:
    # The problems are small: on a busy machine, a second thread makes them many times slower, not faster.
    torch.set_num_threads(1)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of ``pytest -n`` hands what it counted to the one that prints."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["counted"] = tally.counted()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if hasattr(node, "workeroutput"):  # not that of a process that died
        tally.add_counted(node.workeroutput["counted"])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each campaign, with what it tried."""
    if counts := tally.lines():
        terminalreporter.section("campaigns")
        for line in counts:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> str:
    name = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.fail("--device cuda was asked for, and torch finds no CUDA device")
    return "cpu" if name == "emulated" else name


@pytest.fixture(scope="session")
def kernels_raise(request: pytest.FixtureRequest) -> bool:
    """Whether kernels refuse an index out of range; those of CUDA cannot, and give NaN."""
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
    """Seeded alike for every test, whatever ran before it."""
    return Draw(seed=0)


@pytest.fixture
def generator(draw: Draw) -> torch.Generator:
    return draw.generator
