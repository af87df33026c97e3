"""The parts of the fit by L-BFGS: the curvature of each class, the memory of steps, the line search, and the end."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lapal_ext.posterior.map_fit import TOLERANCE, map_weights
from lapal_ext.posterior.softmax_fit import class_curvature, quasi_newton, trust_region
from lapal_ext.posterior.softmax_fit.class_curvature import ClassCurvature
from lapal_ext.posterior.softmax_fit.objective import Objective
from tests.draws import Draw

PRIOR = 0.7


def make_objective(draw: Draw, n_rows: int = 30, n_features: int = 7, n_classes: int = 5) -> Objective:
    x, trust = draw.normal(n_rows, n_features), 0.1 + 2 * draw.uniform(n_rows)
    return Objective(x, draw.integers(n_classes, n_rows), trust, None, n_classes, PRIOR)


def outer_products(weights: Tensor, features: Tensor) -> Tensor:  # [D, D]
    return (features.T * weights) @ features


def dense_blocks(objective: Objective, probabilities: Tensor, most_rows: int) -> list[Tensor]:  # C times [D, D]
    """M of every class, as the module states it."""
    x = objective.features
    curvature = objective.trust * probabilities * (1.0 - probabilities)
    order = curvature.argsort(0, descending=True)
    others = curvature.gather(0, order[2:]).mean(0)
    shared = PRIOR * torch.eye(x.shape[1], dtype=x.dtype) + outer_products(others, x)
    blocks = []
    for k in range(len(curvature)):
        rows = (order[:2] == k).any(0).nonzero().flatten()
        more = (curvature[k] - others)[rows]
        kept = more.argsort(descending=True)[:most_rows]
        blocks.append(shared + outer_products(more[kept], x[rows[kept]]))
    return blocks


def solved_densely(blocks: list[Tensor], gradients: Tensor) -> Tensor:  # [G, C, D]
    result = torch.stack([g @ torch.linalg.inv(m) for m, g in zip(blocks, gradients.unbind(1), strict=True)], 1)
    return result - result.mean(1, keepdim=True)


@pytest.mark.parametrize("most_rows", [30, 3])
def test_the_measured_curvature_of_each_class(most_rows: int, draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_curvature, "_MEMORY", 0.0)  # no matrices
    monkeypatch.setattr(class_curvature, "_most_rows", lambda *_: most_rows)
    objective = make_objective(draw)
    probabilities, gradients = (2 * draw.normal(5, 30)).softmax(0), draw.normal(3, 5, 7)
    curvature = ClassCurvature(objective, torch.float64)
    curvature.measure(probabilities, 0)
    assert curvature.usable
    expected = solved_densely(dense_blocks(objective, probabilities, most_rows), gradients)
    torch.testing.assert_close(curvature.solve(gradients), expected, rtol=1e-9, atol=1e-12)


def test_the_blocks_of_few_classes_are_matrices(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """With 24 rows of 60 for each class, and all other rows in what is spread."""
    monkeypatch.setattr(class_curvature, "_rows_of_a_class", lambda *_: 24)
    monkeypatch.setattr(class_curvature, "_ROWS_OF_OTHERS", 60)  # times D: all rows
    objective = make_objective(draw, 60, 4)
    x, trust = objective.features, objective.trust
    probabilities, gradients = (2 * draw.normal(5, 60)).softmax(0), draw.normal(3, 5, 4)
    curvature = ClassCurvature(objective, torch.float64)
    curvature.measure(probabilities, 0)
    assert curvature.usable
    weights = trust * probabilities * (1.0 - probabilities)
    spread = outer_products(weights.sum(0) / weights.sum(), x)
    blocks = []
    for of_class in weights:
        kept = of_class.argsort(descending=True)[:24]
        others = of_class.sum() - of_class[kept].sum()
        blocks.append(PRIOR * torch.eye(4).double() + outer_products(of_class[kept], x[kept]) + others * spread)
    expected = solved_densely(blocks, gradients)
    torch.testing.assert_close(curvature.solve(gradients), expected, rtol=1e-9, atol=1e-12)
    curvature.share(probabilities)  # forgets them
    mean = PRIOR * torch.eye(4).double() + outer_products(weights.mean(0), x)
    torch.testing.assert_close(curvature.solve(gradients), solved_densely(5 * [mean], gradients))


def test_a_fit_with_few_classes_takes_few_iterations(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun near the minimum. With some vectors for each class, and no matrices, it takes 25 instead of 12."""
    x = draw.normal(4000, 60) * torch.linspace(0.1, 2.0, 60)
    targets = (3 * x @ draw.normal(60, 5) / 60**0.5).argmax(1)
    objective = Objective(x, targets, torch.ones(4000, dtype=x.dtype), None, 5, PRIOR)
    start = map_weights(x, targets, 5, PRIOR, tolerance=TOLERANCE).weight * 0.8
    counts, search = [0, 0], quasi_newton._search
    for case, memory in enumerate((class_curvature._MEMORY, 0.0)):

        def counted(*given: object, case: int = case) -> quasi_newton._Line:
            counts[case] += 1
            return search(*given)

        monkeypatch.setattr(class_curvature, "_MEMORY", memory)
        monkeypatch.setattr(quasi_newton, "_search", counted)
        assert quasi_newton.minimise(objective, start, TOLERANCE).change <= TOLERANCE
    assert 3 * counts[0] <= 2 * counts[1], counts


def test_conjugate_gradients_take_fewer_products_with_the_curvature(
    draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take seven times as many without it, and both end at the same weights."""
    x = draw.normal(1000, 20) * torch.linspace(0.01, 2.0, 20)
    targets = (3 * x @ draw.normal(20, 4) / 20**0.5 + draw.normal(1000, 4)).argmax(1)
    objective = Objective(x, targets, torch.ones(1000, dtype=x.dtype), None, 4, 1e-2)
    counts, fits, steihaug = [0, 0], [], trust_region._steihaug
    for case, solve in enumerate((trust_region._solve, lambda _, residual: residual)):

        def counted(*given: object, case: int = case) -> trust_region._Step:
            step = steihaug(*given)
            counts[case] += step.products
            return step

        monkeypatch.setattr(trust_region, "_solve", solve)
        monkeypatch.setattr(trust_region, "_steihaug", counted)
        fits.append(trust_region.minimise(objective, None, 0.0))
    assert 4 * counts[0] <= counts[1], counts
    assert all(fit.converged for fit in fits)
    torch.testing.assert_close(fits[0].weight, fits[1].weight, rtol=1e-4, atol=1e-5)


def test_the_length_of_a_step_is_that_in_the_norm_of_the_curvature(draw: Draw) -> None:
    inverse = 0.1 + draw.uniform(7)
    problem = trust_region._Problem(make_objective(draw))
    weight = draw.normal(5, 7)
    point = problem.at(weight - weight.mean(0))
    longest = trust_region._steihaug(problem, point, Scaled(inverse), math.inf, 1e-3).length
    for radius in (0.5 * longest, 0.9 * longest, 2.0 * longest):
        step = trust_region._steihaug(problem, point, Scaled(inverse), radius, 1e-3)
        assert step.products > 1
        assert step.length == pytest.approx(float((step.direction.square() / inverse).sum().sqrt()))
        assert step.length == pytest.approx(min(radius, longest))


def test_rows_without_curvature_leave_the_prior(draw: Draw) -> None:
    objective = make_objective(draw)
    curvature = ClassCurvature(objective, torch.float64)
    curvature.measure(torch.eye(5).double()[:, objective.targets], 0)
    gradients = draw.normal(3, 5, 7)
    torch.testing.assert_close(curvature.solve(gradients), (gradients - gradients.mean(1, keepdim=True)) / PRIOR)


def test_the_shared_curvature_is_the_mean_of_all_classes(draw: Draw) -> None:
    objective = make_objective(draw)
    probabilities, gradients = draw.normal(5, 30).softmax(0), draw.normal(3, 5, 7)
    curvature = ClassCurvature(objective, torch.float64)
    curvature.measure(probabilities, 0)
    curvature.share(probabilities)  # forgets what was measured
    mean = (objective.trust * probabilities * (1.0 - probabilities)).mean(0)
    block = PRIOR * torch.eye(7, dtype=torch.float64) + outer_products(mean, objective.features)
    torch.testing.assert_close(curvature.solve(gradients), solved_densely(5 * [block], gradients))


@pytest.mark.parametrize("n_rows", [10, 30])  # vectors for each class, and matrices
def test_features_that_float32_does_not_resolve_are_not_usable(n_rows: int, draw: Draw) -> None:
    plain = make_objective(draw, n_rows)
    sizes = torch.tensor([1e4, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    objective = plain._replace(features=plain.features.float() * sizes, trust=plain.trust.float())
    probabilities = draw.normal(5, n_rows).softmax(0)
    for given, usable in ((plain, True), (objective, False)):
        curvature = ClassCurvature(given, given.features.dtype)
        curvature.share(probabilities.to(given.features.dtype))
        assert curvature.usable is usable
        curvature.measure(probabilities.to(given.features.dtype), 0)
        assert curvature.usable is usable


class Scaled:
    """A curvature that is one number, or one for each feature."""

    usable = True

    def __init__(self, inverse: float | Tensor) -> None:
        self.inverse = inverse

    def solve(self, gradients: Tensor) -> Tensor:
        return self.inverse * gradients


def test_the_memory_of_steps_satisfies_the_secant_equation(draw: Draw) -> None:
    """H y = s for the last step s and its change y of the gradient, also after the curvature was measured again."""
    curvature = Scaled(0.5)
    inverse_hessian = quasi_newton._InverseHessian(curvature)
    inverse_hessian.times(gradient := draw.normal(3, 4), None)
    for _ in range(3):
        moved = draw.normal(3, 4)
        change = moved * (1.0 + draw.uniform(3, 4))
        inverse_hessian.times(gradient := gradient + change, moved)
    torch.testing.assert_close(inverse_hessian.times(change, None), moved)
    curvature.inverse = 2.0
    inverse_hessian.renew()
    torch.testing.assert_close(inverse_hessian.times(change, None), moved)


def test_a_step_of_negative_curvature_is_not_kept(draw: Draw) -> None:
    """Rounding may give one where the gradient hardly changes. With it, the product need not be a descent direction."""
    inverse_hessian = quasi_newton._InverseHessian(Scaled(0.5))
    inverse_hessian.times(gradient := draw.normal(3, 4), None)
    moved = draw.normal(3, 4)
    gradient = gradient - moved
    torch.testing.assert_close(inverse_hessian.times(gradient, moved), 0.5 * gradient)


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_search_finds_the_minimum_along_a_direction(
    size: float, draw: Draw, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = make_objective(draw)
    x = objective.features
    weight = draw.normal(5, 7)

    def value(w: Tensor) -> Tensor:
        losses = cross_entropy(x @ w.T, objective.targets, reduction="none")
        return (objective.trust * losses).sum() + 0.5 * PRIOR * w.square().sum()

    direction = -size * torch.func.grad(value)(weight)
    slope = torch.func.grad(lambda s: value(weight + s * direction))
    low, high = torch.tensor(0.0).double(), torch.tensor(10.0 / size).double()
    assert float(slope(high)) > 0.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if slope(middle) > 0.0 else (middle, high)
    arguments = objective, (x @ weight.T).T.contiguous(), (x @ direction.T).T.contiguous(), weight, direction
    rough = quasi_newton._search(*arguments)
    assert abs(rough.length - float(low)) <= 0.2 * float(low)
    assert rough.norm == pytest.approx(float(direction.norm()))
    monkeypatch.setattr(quasi_newton, "_CLOSE", 1e-9)
    length, rate, _ = quasi_newton._search(*arguments)
    assert length == pytest.approx(float(low), rel=1e-7)
    p, v = (x @ (weight + low * direction).T).softmax(1), x @ direction.T
    largest = float((p * (v - (p * v).sum(1, keepdim=True))).abs().max())
    assert rate == pytest.approx(largest, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "still_to_come"),
    [
        ([1e-9, 1e-9], math.inf),  # two small steps say nothing
        ([0.1, 0.1, 0.1], 0.1),
        ([0.1, 0.1, 0.1, 1e-9], 0.05),  # small by chance
        ([0.5**i for i in range(12)], 0.5**10),  # half of the largest of three steps
        ([0.9**i for i in range(12)], 0.9**11 * 0.9 / 0.1 / 3),  # steps that shrink slowly add up
        ([2.0**i for i in range(12)], 2.0**11 * 33),
        ([0.1, 0.1, 0.1, 0.1, 0.1, 0.0, 0.0, 0.0], 0.0),
        ([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.1], 0.1),
    ],
)
def test_what_is_still_to_come(changes: list[float], still_to_come: float) -> None:
    assert quasi_newton._still_to_come(changes) == pytest.approx(still_to_come)


def test_a_row_added_to_all_classes_of_the_start_is_removed(draw: Draw) -> None:
    """It changes no probability, so no step would remove it."""
    x, y = draw.normal(60, 5).float(), draw.integers(3, 60)
    weight = map_weights(x, y, 3, 1.0, start=torch.ones(3, 5), tolerance=TOLERANCE).weight
    assert float(weight.sum(0).abs().max()) <= 1e-5
