"""Whether a peer did the same work: each function returns what it compared, or raises AssertionError."""

import torch
from torch import Tensor

from benchmarks.peers.settings import NEIGHBOURS, radius, squared_bandwidth
from benchmarks.peers.task import Task, gradients
from benchmarks.workloads.fits import FitProblem
from lapal_ext.likelihood import curvature_weight


def same_rows(task: Task, ours: Tensor, theirs: Tensor) -> str:
    """Of the best rows by one score, all but those that tie."""
    common = len(set(ours.tolist()) & set(theirs.tolist()))
    assert common >= 0.98 * task.batch_size, f"{common} of {task.batch_size} picks are the same"
    return f"{common} of {task.batch_size} picks the same"


def covering_radius(task: Task, ours: Tensor, theirs: Tensor) -> str:
    """The largest distance to the nearest labelled row or pick."""

    def farthest(picks: Tensor) -> float:
        centres = torch.cat([task.labelled, task.pool[picks]])
        return float(torch.cdist(task.pool, centres).amin(1).amax())

    return _equal("covering radius", farthest(ours), farthest(theirs), 1e-3)


def covered_rows(task: Task, ours: Tensor, theirs: Tensor) -> str:
    """Rows within the radius of a labelled row or a pick. Both break ties differently, so the numbers may differ."""
    reach = radius(task)

    def covered(picks: Tensor) -> float:
        centres = torch.cat([task.labelled, task.pool[picks]])
        return float((torch.cdist(task.pool, centres).amin(1) < reach).sum())

    return _equal("covered rows", covered(ours), covered(theirs), 0.02)


def typicality(task: Task, ours: Tensor, theirs: Tensor) -> str:
    """Mean distance of the picks to their nearest rows; k-means of both begins with different centres."""
    assert len(ours.unique()) == len(theirs.unique()) == task.batch_size, "not as many different picks"

    def of(picks: Tensor) -> float:
        distances = torch.cdist(task.pool[picks], task.pool)
        return float(distances.topk(NEIGHBOURS + 1, dim=1, largest=False).values[:, 1:].mean())

    return _equal("mean distance to the nearest rows", of(ours), of(theirs), 0.003)


def kernel_coverage(task: Task, ours: Tensor, theirs: Tensor) -> str:
    """The objective of herding."""
    units = torch.nn.functional.normalize(task.pool, dim=1)
    known = torch.nn.functional.normalize(task.labelled, dim=1)

    def covered(picks: Tensor) -> float:
        nearest = (2.0 - 2.0 * units @ torch.cat([known, units[picks]]).T).amin(1)
        return float((-nearest / squared_bandwidth(task)).exp().double().sum())

    return _equal("coverage", covered(ours), covered(theirs), 1e-4)


def large_gradients(task: Task, ours: Tensor, theirs: Tensor) -> str:
    """The mean squared norm of the gradient embeddings that were picked.

    Embeddings are nearly orthogonal, so k-means++ draws a row in proportion to its squared norm, and the mean of the
    picks is expected to be sum n^4 / sum n^2: 197 here. Draws of it have 178 to 209, and random rows 148 to 166.
    """
    squares = gradients(task).square().sum(1) * task.pool.square().sum(1)
    expected = float(squares.square().sum() / squares.sum())
    means = [float(squares[picks].mean()) for picks in (ours, theirs)]
    for whose, mean in zip(("ours", "theirs"), means, strict=True):
        assert 0.88 * expected <= mean <= 1.25 * expected, f"the squared norm of {whose} is {mean:.0f} on average"
    return f"mean squared norms {means[0]:.0f} and {means[1]:.0f}, {expected:.0f} expected"


def fisher_trace(task: Task, ours: Tensor, theirs: Tensor) -> str:
    """The objective of BAIT, tr(A^-1 F)."""
    curvature = curvature_weight(task.pool @ task.posterior.mean.T, "categorical").double()
    rows = task.pool.double() * curvature.sqrt()[:, None]
    fisher = rows.T @ rows / len(rows)

    def trace(picks: Tensor) -> float:
        precision = task.posterior.precision.double() + rows[picks].T @ rows[picks]
        return float(torch.linalg.solve(precision, fisher).trace())

    return _equal("tr(A⁻¹F)", trace(ours), trace(theirs), 1e-3)


def expected_losses(task: Task, ours: Tensor, theirs: Tensor) -> str:  # noqa: ARG001 the signature of all checks
    """The losses of all candidates, and how they vary. Theirs are those of fits, ours of updates."""
    difference = float((ours.double() / theirs - 1.0).abs().amax())
    correlation = float(torch.corrcoef(torch.stack([ours.double(), theirs]))[0, 1])
    assert difference <= 2e-3, f"the expected losses differ by {100 * difference:.2g} %"
    assert correlation >= 0.5, f"the expected losses have a correlation of {correlation:.2g}"
    return f"correlation of the losses {correlation:.2f}"


def probabilities(task: Task, ours: Tensor, theirs: Tensor) -> str:  # noqa: ARG001 the signature of all checks
    """Of the rows that the peer predicted; its covariance has another structure."""
    difference = (ours[: len(theirs)] - theirs).abs()
    mean, largest = float(difference.mean()), float(difference.amax())
    assert mean <= 0.01, f"the probabilities differ by {mean:.2g} on average"
    assert largest <= 0.1, f"the probabilities differ by {largest:.2g} at most"
    return f"probabilities within {largest:.1g}, on average {mean:.1g}"


def fit(problem: FitProblem, ours: Tensor, theirs: Tensor) -> str:
    """The objective, and the probabilities of the rows."""
    our_loss, their_loss = problem.objective(ours), problem.objective(theirs)
    assert our_loss <= their_loss * (1.0 + 1e-5), f"the objective is {our_loss:.6g}, theirs is {their_loss:.6g}"
    largest = float((problem.probabilities(ours) - problem.probabilities(theirs)).abs().amax())
    assert largest <= 0.05, f"the probabilities differ by {largest:.2g} at most"
    return f"probabilities within {largest:.1g}, our objective no larger"


def _equal(what: str, ours: float, theirs: float, tolerance: float) -> str:
    """Both numbers are the same up to a relative tolerance."""
    difference = abs(ours - theirs) / abs(theirs) if theirs != ours else 0.0
    assert difference <= tolerance, f"{what} {ours:.5g}, theirs {theirs:.5g}"
    return f"{what} within {max(difference, 1e-6):.1g}"
