"""``torch.autocast`` changes no bit of what a public function returns, and the layer behaves as other layers there."""

import copy
import inspect
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import lapal_ext
from lapal_ext import LastLayerLaplace, SelectionResult, SequentialSelector, baselines, entries, ops, select_batch
from lapal_ext.interop import skactiveml, sklearn
from tests.budget import outcome
from tests.draws import Draw, cast
from tests.fuzz.calls import bits
from tests.fuzz.changes import the_same_every_time
from tests.fuzz.one_call import fresh
from tests.fuzz.small import Function, small
from tests.fuzz.test_bad_input import FUNCTIONS
from tests.ops.examples import VARIANTS, example

try:
    from lapal_ext.interop import laplace
except ImportError:  # laplace-torch is not installed
    laplace = None

HALVES = (torch.bfloat16, torch.float16)
LAYER = "posterior (features)"  # the one function that autocast is meant for
D, C, N = 12, 4, 40


def autocast(half: torch.dtype) -> AbstractContextManager[None]:
    return torch.autocast("cpu", dtype=half)


def all_bits(result: object) -> object:
    if isinstance(result, SelectionResult):
        return [all_bits(part) for part in result]
    if isinstance(result, (tuple, list)):
        return [all_bits(part) for part in result]
    return bits(result) if bits(result) is not None else repr(result)


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != LAYER])
def test_no_bit_of_a_public_function_changes(name: str, half: torch.dtype) -> None:
    compare(FUNCTIONS[name], half)


def compare(function: Function, half: torch.dtype) -> None:
    """Call it on a few random problems, outside of autocast and within."""

    @the_same_every_time(6)
    @given(st.data())
    def compared(data: st.DataObject) -> None:
        arguments = function.arguments(data.draw, small(data.draw))
        values = {name: fresh(made.good) for name, made in arguments.items()}
        again = {name: fresh(value) for name, value in values.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = function.call(**values)
            with autocast(half):
                result = function.call(**again)
        assert all_bits(result) == all_bits(expected)

    compared()


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_no_bit_of_an_op_changes(name: str, variant: str, half: torch.dtype) -> None:
    arguments = cast(ops.OPS[name], example(name, variant), torch.float32)
    expected = outcome(ops.OPS[name], ops.OPS[name], arguments)
    with autocast(half):
        result = outcome(ops.OPS[name], ops.OPS[name], arguments)
    assert {key: bits(value) for key, value in result.values.items()} == {
        key: bits(value) for key, value in expected.values.items()
    }


@pytest.fixture
def model(draw: Draw) -> LastLayerLaplace:
    """Float32, with a bias and a centre, and with an update that its precision does not contain yet."""
    x = draw.normal(60, D).float() + 3.0
    fitted = LastLayerLaplace.fit_map(x, draw.integers(C, 60), C)
    return fitted.update(draw.normal(3, D).float() + 3.0, draw.integers(C, 3))


# What torch and Python call rather than the user: hooks, copies and files.
HOOKS: dict[str, Callable[[LastLayerLaplace], object]] = {
    "precision": lambda model: model.precision,
    "double": lambda model: model.double(),
    "there and back": lambda model: model.double().float(),
    "deepcopy": copy.deepcopy,
    "copy of what is pending": lambda model: copy.deepcopy(model).precision,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "state_dict": lambda model: [value for value in model.state_dict().values() if isinstance(value, Tensor)],
    "state_dict of a parent": lambda model: list(nn.ModuleDict({"fc": model}).state_dict().values())[:-1],
    "standardization": lambda model: [*model.standardization.raw(model.mean)][:0],
    "print": repr,
}


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("name", HOOKS)
def test_no_bit_of_a_copy_changes(model: LastLayerLaplace, name: str, half: torch.dtype) -> None:
    expected = all_bits(HOOKS[name](model.clone()))
    with autocast(half):
        assert all_bits(HOOKS[name](model.clone())) == expected


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_a_callable_runs_outside_of_autocast_too(draw: Draw, model: LastLayerLaplace, half: torch.dtype) -> None:
    pool = draw.normal(N, D).float()

    def acquisition(posterior: LastLayerLaplace, rows: Tensor) -> Tensor:
        return (rows @ posterior.mean[:, :D].T).amax(1)

    expected = select_batch(model, pool, 5, acquisition)
    with autocast(half):
        assert all_bits(select_batch(model, pool, 5, acquisition)) == all_bits(expected)


@pytest.mark.parametrize("half", HALVES, ids=str)
def test_autocast_is_as_before_after_a_call_and_after_an_error(model: LastLayerLaplace, half: torch.dtype) -> None:
    square = torch.eye(D)
    with autocast(half):
        model.predict_proba(square)
        assert (square @ square).dtype == half
        with pytest.raises(ValueError, match="features must have shape"):
            model.predict_proba(square[:, 1:])
        assert (square @ square).dtype == half
    assert (square @ square).dtype == torch.float32


# The layer


@pytest.mark.parametrize("half", HALVES, ids=str)
@pytest.mark.parametrize("fit_bias", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_the_layer_computes_as_to_linear_does(draw: Draw, half: torch.dtype, fit_bias: bool, standardize: bool) -> None:
    x = draw.normal(60, D).float() + 30.0
    model = LastLayerLaplace.fit_map(x, draw.integers(C, 60), C, fit_bias=fit_bias, standardize=standardize)
    layer = model.to_linear()
    with autocast(half):
        for rows in (x, x.to(half)):
            assert bits(model(rows)) == bits(layer(rows))
            assert model(rows).dtype == half


def test_a_double_model_refuses_rows_of_another_dtype_within_autocast(draw: Draw) -> None:
    model = LastLayerLaplace(draw.normal(C, D))
    with (
        autocast(torch.bfloat16),
        pytest.raises(TypeError, match=r"must be torch.float64 like mean, got torch.bfloat16"),
    ):
        model(draw.normal(3, D).bfloat16())


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_layer_is_one_graph_within_autocast(draw: Draw, model: LastLayerLaplace, backend: str) -> None:
    x = draw.normal(5, D).float() + 3.0
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with autocast(torch.bfloat16):
        assert bits(compiled(x).detach()) == bits(model(x))
    assert bits(compiled(x).detach()) == bits(model(x))


# Whether anything was forgotten

CLASSES = (LastLayerLaplace, SequentialSelector, sklearn.LaplaceClassifier, skactiveml.LaplaceQueryStrategy)
COMPUTES_NOTHING = {"backend", "build_info"}
LIKE_A_LAYER = {"forward"}


def is_entry(function: object) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and Path(code.co_filename) == Path(entries.__file__)


def public_functions() -> Iterator[tuple[str, object]]:
    names = [(lapal_ext, name) for name in lapal_ext.__all__]
    names += [(baselines, name) for name in ("first_order", "monte_carlo")]
    names += [(laplace, "from_laplace")] * (laplace is not None)
    for module, name in names:
        value = getattr(module, name)
        if inspect.isfunction(value) and name not in COMPUTES_NOTHING:
            yield name, value
    for owner in CLASSES:
        for name, value in vars(owner).items():
            function = value.__func__ if isinstance(value, classmethod) else value
            if inspect.isfunction(function) and not name.startswith("_") and name not in LIKE_A_LAYER:
                yield f"{owner.__name__}.{name}", function


@pytest.mark.parametrize(("name", "function"), [pytest.param(*case, id=case[0]) for case in public_functions()])
def test_every_public_function_is_an_entry(name: str, function: object) -> None:
    assert is_entry(function), f"{name} is not decorated with entries.entry"


def test_every_public_class_is_listed() -> None:
    """All classes of the package but tuples of results and errors, which compute nothing."""
    found = {getattr(lapal_ext, name) for name in lapal_ext.__all__ if inspect.isclass(getattr(lapal_ext, name))}
    assert {cls for cls in found if not issubclass(cls, (tuple, Exception))} <= {*CLASSES}


# Warnings


def test_a_warning_names_the_line_that_called(draw: Draw) -> None:
    with pytest.warns(UserWarning, match="mean square") as caught:
        LastLayerLaplace.from_linear(nn.Linear(D, C), 100.0 * draw.normal(9, D).float())
    assert caught[0].filename == __file__
