"""NumPy arrays in public functions: the same results as from tensors, no conversion, and errors that name them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.masked import masked_tensor

from lapal_ext import (
    LastLayerLaplace,
    SequentialSelector,
    baselines,
    expected_error_reduction,
    look_ahead,
    ops,
    select_batch,
    select_lookahead,
)
from lapal_ext.validation.arrays import view
from tests.draws import Draw
from tests.problems import Problem, make_problem

PROBLEM = make_problem(n_classes=3, n_features=5, n_pool=40)
N, D, C = 40, 5, 3


def select_by_hand(posterior: LastLayerLaplace, pool: Tensor, rows: Tensor, labels: Tensor, **optional: Tensor) -> Any:
    selector = SequentialSelector(posterior, pool, **optional)
    selector.tell(rows[:2], labels[:2])
    selector.skip(rows[2:3])
    return selector.ask(2), selector.posterior


def optimize(features: Tensor, targets: Tensor, grid: Tensor) -> Any:
    generator = torch.Generator().manual_seed(0)
    return LastLayerLaplace.optimize_prior_precision(features, targets, C, grid, 2, generator=generator)


def select_best(posterior: LastLayerLaplace, *data: Tensor, **optional: Tensor) -> Any:
    generator = torch.Generator().manual_seed(0)
    pool, eval_features = data
    return select_lookahead(posterior, pool, eval_features, 2, 6, generator=generator, **optional)


def calls(problem: Problem, draw: Draw) -> dict[str, tuple[Callable[..., Any], list[Any], dict[str, Any]]]:
    """Every public function with all arguments that may be tensors, positional ones and named ones."""
    posterior, pool, labels, points, truth = problem
    head = torch.nn.Linear(D, C, dtype=pool.dtype)
    weight, bias = draw.normal(C, D).to(pool.dtype), draw.normal(C).to(pool.dtype)
    rows, batches = torch.arange(5, 25), torch.arange(12).view(4, 3)
    grid = torch.tensor([0.001, 0.1, 10.0], dtype=torch.float64)
    return {
        "constructor": (lambda w, bias: LastLayerLaplace(w, bias=bias).mean, [weight], {"bias": bias}),
        "fit": (lambda x: LastLayerLaplace(weight).fit(x).precision, [pool], {}),
        "from_linear": (lambda x: LastLayerLaplace.from_linear(head, x, standardize=True).precision, [pool], {}),
        "fit_map": (lambda x, y: LastLayerLaplace.fit_map(x, y, C), [pool, labels], {}),
        "update": (lambda x, y: posterior.clone().update(x, y), [pool, labels], {}),
        "condition_on": (posterior.condition_on, [pool, labels], {}),
        "predict_logits": (posterior.predict_logits, [pool], {}),
        "predict_latent": (posterior.predict_latent, [pool], {}),
        "predict_proba": (posterior.predict_proba, [pool], {}),
        "log_marginal_likelihood": (posterior.log_marginal_likelihood, [pool, labels, grid], {}),
        "optimize_prior_precision": (optimize, [pool, labels, grid], {}),
        "select_batch": (
            lambda x, **named: select_batch(posterior, x, 4, "coreset", **named),
            [pool],
            {"targets": labels, "candidates": rows, "exclude": rows[:4], "labelled": points},
        ),
        "SequentialSelector": (
            lambda x, rows, labels, **named: select_by_hand(posterior, x, rows, labels, **named),
            [pool, rows, labels],
            {"candidates": rows, "labelled": points},
        ),
        "look_ahead": (
            lambda *data, **named: look_ahead(posterior, *data, loss="brier", **named),
            [pool, batches, labels, points],
            {"eval_targets": truth},
        ),
        "expected_error_reduction": (lambda *data: expected_error_reduction(posterior, *data), [pool, points], {}),
        "select_lookahead": (
            lambda *data, **named: select_best(posterior, *data, **named),
            [pool, points],
            {"targets": labels, "eval_targets": truth, "candidates": rows, "labelled": points},
        ),
        "first_order": (lambda *data: baselines.first_order(posterior, *data), [pool, labels], {}),
        "monte_carlo": (
            lambda *data: baselines.monte_carlo(
                posterior, *data, n_samples=50, generator=torch.Generator().manual_seed(0)
            ),
            [pool[:5], labels[:5], points],
            {},
        ),
    }


def tensors_in(result: Any) -> list[Tensor]:
    if isinstance(result, LastLayerLaplace):
        return [result.mean, result.covariance, result.precision]
    if isinstance(result, tuple):
        return [tensor for part in result for tensor in tensors_in(part)]
    return [torch.as_tensor(result)]


def as_arrays(value: Any) -> Any:
    """A tensor as a read-only array of its dtype."""
    if not isinstance(value, Tensor):
        return value
    array = value.numpy().copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("name", list(calls(PROBLEM, Draw(0))))
def test_arrays_give_the_results_of_tensors(name: str) -> None:
    function, places, named = calls(PROBLEM, Draw(0))[name]
    expected = tensors_in(function(*places, **named))
    result = tensors_in(
        function(*map(as_arrays, places), **{key: as_arrays(value) for key, value in named.items()}),
    )
    assert len(result) == len(expected)
    for ours, theirs in zip(result, expected, strict=True):
        assert isinstance(ours, Tensor)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", list(calls(PROBLEM, Draw(0))))
def test_one_array_among_tensors_gives_the_same_results(name: str) -> None:
    function, places, named = calls(PROBLEM, Draw(0))[name]
    expected = tensors_in(function(*places, **named))
    for place in range(len(places)):
        mixed = [as_arrays(value) if number == place else value for number, value in enumerate(places)]
        assert all(map(torch.equal, tensors_in(function(*mixed, **named)), expected))
    for key in named:
        mixed_names = {**named, key: as_arrays(named[key])}
        assert all(map(torch.equal, tensors_in(function(*places, **mixed_names)), expected))


class TestDtypes:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_a_model_has_the_dtype_of_the_array_it_is_fitted_to(self, dtype: type) -> None:
        features = PROBLEM.pool.numpy().astype(dtype)
        posterior = LastLayerLaplace.fit_map(features, PROBLEM.labels.numpy(), C)
        assert posterior.mean.numpy().dtype == posterior.predict_proba(features).numpy().dtype == dtype

    @pytest.mark.parametrize(("of_model", "of_array"), [(np.float32, np.float64), (np.float64, np.float32)])
    def test_features_are_not_converted(self, of_model: type, of_array: type) -> None:
        features = PROBLEM.pool.numpy()
        posterior = LastLayerLaplace.fit_map(features.astype(of_model), PROBLEM.labels.numpy(), C)
        expected = f"torch.{np.dtype(of_model).name}.*, got torch.{np.dtype(of_array).name}"
        for call in (posterior.predict_proba, posterior.predict_latent, posterior.fit):
            with pytest.raises(TypeError, match=f"features must be {expected}"):
                call(features.astype(of_array))
        with pytest.raises(TypeError, match=f"pool must be {expected}"):
            select_batch(posterior, features.astype(of_array))

    @pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64])
    def test_labels_of_any_integer_type_are_accepted(self, dtype: type) -> None:
        posterior, pool, labels, *_ = PROBLEM
        expected = posterior.condition_on(pool, labels)
        result = posterior.condition_on(pool, labels.numpy().astype(dtype))
        assert torch.equal(result.mean, expected.mean)

    @pytest.mark.parametrize("dtype", [np.float64, np.bool_])
    def test_labels_that_are_no_integers_are_refused(self, dtype: type) -> None:
        with pytest.raises(TypeError, match="targets must hold integers"):
            PROBLEM.posterior.condition_on(PROBLEM.pool, PROBLEM.labels.numpy().astype(dtype))

    def test_rows_are_integers(self) -> None:
        with pytest.raises(TypeError, match=r"candidates must hold integers, got torch.float32"):
            select_batch(PROBLEM.posterior, PROBLEM.pool, 2, candidates=np.arange(5, dtype=np.float32))


class TestNoTensor:
    @pytest.mark.parametrize(
        ("array", "says"),
        [
            (np.array([["a"]]), "must hold numbers"),
            (np.array([[None]]), "must hold numbers"),
            (np.zeros((1, 1), np.complex128), "must hold numbers"),
            (np.zeros((1, 1), "M8[s]"), "must hold numbers"),
            (np.zeros((1, 1), ">f8"), "must hold numbers that torch supports, in native byte order, got >f8"),
            (np.zeros((1, 1), np.longdouble), "must hold numbers"),
            (np.zeros((2, 1))[::-1], "must not have negative strides"),
            (np.ma.zeros((1, 1)), "must not be a masked array"),
            (np.zeros((3, 1), [("a", "f8"), ("b", "i1")])["a"], "must not be a field of a structured array"),
        ],
    )
    def test_arrays_that_torch_cannot_view_are_refused(self, array: Any, says: str) -> None:
        with pytest.raises(TypeError, match=f"^features {says}"):
            LastLayerLaplace.fit_map(array, np.zeros(1, np.int64), 2)
        with pytest.raises(TypeError, match=f"^pool {says}"):
            select_batch(PROBLEM.posterior, array)

    @pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors is in prototype stage")
    def test_masked_tensors_are_refused_as_masked_arrays_are(self) -> None:
        pool, rows = (masked_tensor(x, torch.ones_like(x, dtype=torch.bool)) for x in (PROBLEM.pool, torch.arange(5)))
        for name, call in {
            "pool": lambda: select_batch(PROBLEM.posterior, pool),
            "features": lambda: PROBLEM.posterior.predict_proba(pool),
            "exclude": lambda: select_batch(PROBLEM.posterior, PROBLEM.pool, exclude=rows),
            "targets": lambda: PROBLEM.posterior.condition_on(PROBLEM.pool[:5], rows),
        }.items():
            with pytest.raises(TypeError, match=f"^{name} must not be a masked tensor, since its mask"):
                call()

    @pytest.mark.parametrize("value", [[[1.0]], "features", None, 3])
    def test_other_types_are_refused(self, value: Any) -> None:
        with pytest.raises(TypeError, match=r"^features must be a torch.Tensor or a NumPy array, got "):
            LastLayerLaplace.fit_map(value, np.zeros(1, np.int64), 2)

    def test_ops_accept_tensors_alone(self) -> None:
        with pytest.raises(TypeError, match=r"^logits must be a torch.Tensor, got ndarray"):
            ops.predictive(np.zeros((2, 3)), None, 0.0)


class TestMemory:
    @pytest.mark.parametrize("writeable", [True, False])
    @pytest.mark.parametrize("make", [np.ascontiguousarray, np.asfortranarray, lambda x: x[::2, 1:]])
    def test_a_view_shares_the_memory_of_its_array(self, make: Callable[[Any], Any], writeable: bool) -> None:
        array = make(np.arange(24.0).reshape(6, 4))
        array.flags.writeable = writeable
        tensor = view("x", array)
        assert tensor.data_ptr() == array.__array_interface__["data"][0]
        assert tensor.tolist() == array.tolist()

    def test_a_posterior_does_not_share_memory_with_arrays(self) -> None:
        weight, features = np.ones((C, D)), PROBLEM.pool.numpy().copy()
        posterior = LastLayerLaplace(weight).fit(features)
        before = [buffer.clone() for buffer in posterior.buffers()]
        weight[:], features[:] = 7.0, 7.0
        assert all(map(torch.equal, posterior.buffers(), before))

    def test_answers_are_copied_from_arrays(self) -> None:
        selector = SequentialSelector(PROBLEM.posterior, PROBLEM.pool)
        rows, labels = np.array([3]), np.array([1])
        selector.tell(rows, labels)
        expected = selector.posterior.mean
        rows[:], labels[:] = 4, 2
        assert torch.equal(selector.posterior.mean, expected)
        assert selector.state_dict()["rows"].tolist() == [3]
