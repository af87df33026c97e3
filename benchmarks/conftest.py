"""Options and fixtures: threads, the machine in reports, and how an op is compared with its reference and timed."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.utils import load_timer
from torch import Tensor

from benchmarks.harness.workload import ONE_THREAD, Timer
from lapal_ext import ops
from tests.draws import Draw

ARMS = ("native", "reference")
_AGREEMENT = 1e-4  # relative, in float32: a rough check, since the tests check the error budget


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--threads", type=int, default=1, help="threads that torch and the kernels may use")
    parser.addoption("--device", default="cpu", help="where single ops run; the workloads are those of the CPU")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["lapal_ext"] = ops.build_info() | {
        "threads": config.getoption("--threads"),
        "reference_ops": sorted(name for name in ops.OPS if ops.backend(name) != "native"),
    }
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    machine_info["commit"] = described.stdout.strip()


@pytest.fixture(autouse=True)
def require_arm(request: pytest.FixtureRequest, device: torch.device) -> None:
    """Skip an arm that cannot run here, before the fixture ``benchmark`` exists: unused, it would warn."""
    if "arm" not in request.fixturenames:
        return
    arm, op = request.node.callspec.params["arm"], request.module.__name__.rpartition(".bench_")[2]
    if arm == ONE_THREAD and request.config.getoption("--threads") == 1:
        pytest.skip("all arms run in one thread; --threads N allows more")
    if arm in (ONE_THREAD, "native", "native f32"):
        names = [op] if op in ops.OPS else ops.OPS  # a workload calls several
        if all(ops.backend(name, device) != "native" for name in names):
            pytest.skip(f"no kernel on {device}: {ops.build_info()['reason'] or 'none is compiled in'}")


@pytest.fixture(autouse=True)
def limit_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=ARMS)
def arm(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def draw() -> Draw:
    return Draw(seed=0)


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def compared_workloads() -> set[str]:
    return set()


@pytest.fixture
def time_workload(benchmark: Any, arm: str, request: pytest.FixtureRequest, compared_workloads: set[str]) -> Timer:
    clock = load_timer(request.config.getoption("benchmark_timer")).target
    return Timer(benchmark, arm, clock, compared_workloads)


@pytest.fixture
def time_op(benchmark: Any, arm: str, device: torch.device, request: pytest.FixtureRequest) -> Callable[..., None]:
    """Compare an op with its reference, then time one of them on fresh copies of what it changes."""

    def finished(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(**arguments: object) -> Any:
            result = function(**arguments)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return result

        return call

    def compare_and_time(op: ops.Op, mutates: tuple[str, ...] = (), **arguments: object) -> None:
        arguments = {name: a.to(device) if isinstance(a, Tensor) else a for name, a in arguments.items()}
        functions = {"native": finished(op), "reference": finished(op.reference)}

        def fresh() -> dict[str, object]:
            return arguments | {name: arguments[name].clone() for name in mutates}

        native, reference = (_as_tuple(function(**fresh())) for function in functions.values())
        for value, expected in zip(native, reference, strict=True):
            if expected.numel() == 0:  # Hessian products of no direction
                continue
            size = float(expected.double().abs().max())  # double, because results may be boolean
            torch.testing.assert_close(value, expected, rtol=_AGREEMENT, atol=_AGREEMENT * size)
        benchmark.group = request.node.name.replace(f"{arm}-", "").replace(f"[{arm}]", "")
        benchmark.pedantic(functions[arm], setup=lambda: ((), fresh()), rounds=15, warmup_rounds=2)

    return compare_and_time


def _as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)
