"""``torch.set_default_device`` changes nothing: every factory of the package names its device."""

import ast
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from lapal_ext import LastLayerLaplace, ops, select_lookahead
from lapal_ext.features import extract
from tests.budget import outcome
from tests.draws import Draw, cast
from tests.fuzz.changes import the_same_every_time
from tests.fuzz.one_call import fresh
from tests.fuzz.small import small
from tests.fuzz.test_autocast import HOOKS, all_bits
from tests.fuzz.test_bad_input import FUNCTIONS
from tests.ops.examples import VARIANTS, example
from tests.packaging.test_layering import PACKAGE, modules


class NamesItsDevice(TorchFunctionMode):
    """Refuses a factory without a device, wherever the package calls it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _device_constructors() and (kwargs or {}).get("device") is None:
            frame = sys._getframe(1)
            while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == "torch":
                frame = frame.f_back
            owner = frame.f_globals.get("__name__", "") if frame is not None else ""
            assert not owner.startswith("lapal_ext"), f"{owner}:{frame.f_lineno} calls {func.__name__} without a device"
        return func(*args, **(kwargs or {}))


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


def outside_and_within(name: str, call: Callable[[], Callable[[], object]]) -> None:
    """The same bits with the mode, and with a default device whose tensors hold no values."""
    expected = all_bits(call()())
    again, once_more = call(), call()
    with NamesItsDevice():
        assert all_bits(again()) == expected, name
    with default_device("meta"):
        result = once_more()
    assert all_bits(result) == expected, name


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_names_its_devices(name: str) -> None:
    function = FUNCTIONS[name]

    @the_same_every_time(6)
    @given(st.data())
    def compared(data: st.DataObject) -> None:
        arguments = function.arguments(data.draw, small(data.draw))
        values = {argument: made.good for argument, made in arguments.items()}

        def ready() -> Callable[[], object]:
            given = {argument: fresh(value) for argument, value in values.items()}
            return lambda: function.call(**given)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outside_and_within(name, ready)

    compared()


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
@pytest.mark.parametrize("reference", [True, False])
def test_every_op_names_its_devices(name: str, variant: str, reference: bool) -> None:
    arguments = cast(ops.OPS[name], example(name, variant), torch.float32)
    called = ops.OPS[name].reference if reference else ops.OPS[name]
    outside_and_within(name, lambda: lambda: list(outcome(called, ops.OPS[name], arguments).values.values()))


@pytest.mark.parametrize("name", HOOKS)
def test_every_copy_names_its_devices(draw: Draw, name: str) -> None:
    model = LastLayerLaplace.fit_map(draw.normal(30, 5).float(), draw.integers(3, 30), 3)
    model.update(draw.normal(2, 5).float(), draw.integers(3, 2))

    def ready() -> Callable[[], object]:
        copied = model.clone()
        return lambda: HOOKS[name](copied)

    outside_and_within(name, ready)


@pytest.mark.parametrize("proposals", ["random", "diverse", "informative", "badge"])
@pytest.mark.parametrize("targets", ["predicted", "sampled"])
def test_every_proposal_and_every_draw_names_its_device(draw: Draw, proposals: str, targets: str) -> None:
    x = draw.normal(30, 5)
    model = LastLayerLaplace.fit_map(x, draw.integers(3, 30), 3)

    def ready() -> Callable[[], object]:
        generator = torch.Generator().manual_seed(0)
        return lambda: select_lookahead(
            model, x, x[:4], 3, 6, targets, proposals=[proposals], n_label_samples=2, generator=generator
        )

    outside_and_within(proposals, ready)


@pytest.mark.parametrize("kind", ["a TensorDataset", "a list of items", "an iterable dataset", "any dataset"])
def test_data_that_are_read_item_by_item(draw: Draw, tmp_path: Path, kind: str) -> None:
    """Also for the checksum of the data, which a file of features has. Items get the default device that is set."""
    x, y = draw.normal(12, 5).float(), draw.integers(3, 12)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    items = list(zip(x, y.tolist(), strict=True))
    devices = set()

    class Items(Dataset[Any]):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, row: int) -> Any:
            devices.add(torch.empty(0).device.type)
            return items[row]

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(items)

    data = {
        "a TensorDataset": TensorDataset(x, y),
        "a list of items": items,
        "an iterable dataset": Stream(),
        "any dataset": Items(),
    }[kind]
    path = None if kind == "an iterable dataset" else tmp_path / "features.npy"

    def features() -> Tensor:
        for file in tmp_path.iterdir():
            file.unlink()
        return extract(model, data, path=path, batch_size=5).features.clone()

    expected = features()
    devices.clear()
    with default_device("meta"):
        assert torch.equal(features(), expected)
    assert devices == ({"meta"} if kind == "any dataset" else set())


@pytest.mark.parametrize("name", ["select_batch (random)", "select_batch (bald)", "optimize_prior_precision"])
def test_draws_without_a_generator_come_from_the_cpu(name: str) -> None:
    """The default generator of the CPU, so that ``torch.manual_seed`` gives the same draws with any default device."""
    function = FUNCTIONS[name]

    @the_same_every_time(3)
    @given(st.data())
    def compared(data: st.DataObject) -> None:
        arguments = function.arguments(data.draw, small(data.draw))
        values = {argument: made.good for argument, made in arguments.items()} | {"generator": None}

        def ready() -> Callable[[], object]:
            def call() -> object:
                torch.random.default_generator.manual_seed(3)
                return function.call(**values)

            return call

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outside_and_within(name, ready)

    compared()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_calls_a_factory_without_a_device(path: Path) -> None:
    """Also where no test above comes by, as in the commands and the experiments."""
    names = {function.__name__ for function in _device_constructors()} | {"Generator"}
    found = [
        f"line {node.lineno}: torch.{node.func.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "torch"
        and node.func.attr in names
        and not any(keyword.arg == "device" for keyword in node.keywords)
    ]
    assert found == []


def test_a_factory_without_a_device_is_found() -> None:
    source = "import torch\ndef make(): return torch.zeros(3)"
    planted = {"__name__": "lapal_ext.planted"}
    exec(source, planted)
    with pytest.raises(AssertionError, match=r"lapal_ext\.planted:2 calls zeros without a device"), NamesItsDevice():
        planted["make"]()
