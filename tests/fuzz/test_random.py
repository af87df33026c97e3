"""Random arguments, most of them wrong: right ones give the right result, wrong ones a typed error and no change."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lapal_ext import LastLayerLaplace, NotPSDError, look_ahead, select_batch
from tests.draws import Draw
from tests.fuzz.calls import bits

C, D, N = 3, 2, 4
draw = Draw(seed=3)
MODEL = LastLayerLaplace(draw.normal(C, D), bias=draw.normal(C)).fit(draw.normal(9, D))
POOL, LABELS, POINTS = draw.normal(N, D), draw.integers(C, N), draw.normal(5, D)
ERRORS = (ValueError, TypeError, NotPSDError)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)

RARELY = st.sampled_from([False] * 5 + [True])

often = settings(derandomize=True, deadline=None, max_examples=60, database=None)


@st.composite
def tensors(choose: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype, low: int, high: int) -> Tensor:
    """Usually a right tensor; else another shape or dtype, or one entry that is NaN or outside [low, high]."""
    if choose(RARELY):
        shape = choose(st.sampled_from([shape, shape[:-1], (*shape, 1), shape[::-1], (0, *shape[1:]), (1, *shape)]))
        dtype = choose(st.sampled_from(DTYPES))
    size = math.prod(shape)
    numbers = choose(st.lists(st.integers(low, high), min_size=size, max_size=size))
    tensor = torch.tensor(numbers, dtype=torch.float64).reshape(shape).to(dtype)
    if size and dtype in (torch.int64, torch.float64) and choose(RARELY):
        wrong = [math.nan, math.inf, -math.inf] if dtype.is_floating_point else [low - 1, high + 1]
        tensor.view(-1)[choose(st.integers(0, size - 1))] = choose(st.sampled_from(wrong))
    return tensor


gammas = st.sampled_from([1.0, 0, 0.5, 7, 1e6] * 3 + [-1.0, math.nan, math.inf, None, "1", True, torch.tensor(1.0)])
steps = st.sampled_from(["line_search", "newton"] * 4 + ["bogus", None])


def good_features(x: Tensor) -> bool:
    return x.dim() == 2 and x.shape[1] == D and x.dtype == torch.float64 and bool(x.isfinite().all())


def good_labels(y: Tensor, shape: tuple[int, ...]) -> bool:
    integers = not y.dtype.is_floating_point and y.dtype != torch.bool
    return integers and y.shape == shape and in_range(y, C)


def in_range(indices: Tensor, size: int) -> bool:
    return bool(((indices >= 0) & (indices < size)).all())


def good_update(step: object, gamma: object) -> bool:
    number = isinstance(gamma, (int, float)) and not isinstance(gamma, bool)
    return step in ("line_search", "newton") and number and math.isfinite(gamma) and gamma >= 0


def one_by_one(x: Tensor, y: Tensor, step: str, gamma: float) -> LastLayerLaplace:
    model = MODEL.clone()
    for row in range(len(x)):
        model.update(x[row : row + 1], y[row : row + 1], step, gamma)
    return model


def same(result: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-8)


@often
@given(tensors((N, D), torch.float64, -3, 3), tensors((N,), torch.int64, 0, C - 1), steps, gammas)
def test_update(x: Tensor, y: Tensor, step: object, gamma: object) -> None:
    good = good_features(x) and good_labels(y, x.shape[:1]) and good_update(step, gamma)
    model, before = MODEL.clone(), [bits(MODEL), bits(x), bits(y)]
    try:
        model.update(x, y, step, gamma)
    except ERRORS:
        assert not good
        assert [bits(model), bits(x), bits(y)] == before
    else:
        assert good
        if gamma <= 1:  # a large step is chaotic: rounding decides
            same(model.mean, one_by_one(x, y, step, gamma).mean)
        same(model.covariance @ model.precision, torch.eye(D + 1, dtype=torch.float64))


@often
@given(
    tensors((N, D), torch.float64, -3, 3),
    tensors((N,), torch.int64, 0, C - 1),
    st.sampled_from([1, 2, 3, torch.tensor(2)] * 3 + [N + 1, 0, -1, 2.0, True, None]),
    st.one_of(st.none(), tensors((3,), torch.int64, 0, N - 1)),
    gammas,
)
def test_select_batch(
    pool: Tensor, labels: Tensor, batch_size: object, candidates: Tensor | None, gamma: object
) -> None:
    good = good_features(pool) and good_labels(labels, pool.shape[:1]) and good_update("newton", gamma)
    good = good and isinstance(batch_size, (int, Tensor)) and not isinstance(batch_size, bool) and batch_size > 0
    allowed = range(len(pool)) if candidates is None and pool.dim() else []
    if candidates is not None:
        distinct = candidates.dim() == 1 and candidates.dtype == torch.int64 and candidates.unique().shape
        good = good and distinct == candidates.shape and in_range(candidates, len(pool))
        allowed = candidates.tolist()
    good = good and batch_size <= len(allowed)
    before = [bits(MODEL), bits(pool), bits(labels), bits(candidates)]
    try:
        result = select_batch(MODEL, pool, batch_size, "margin", labels, gamma=gamma, candidates=candidates)
    except ERRORS:
        assert not good
    else:
        assert good
        picks = result.indices.tolist()
        assert len(set(picks)) == len(picks) == int(batch_size)
        assert set(picks) <= set(allowed)
        first_two = MODEL.predict_proba(pool, link="plugin").topk(2, dim=1).values
        margins = (1 - first_two[:, 0] + first_two[:, 1])[torch.tensor(allowed)]
        same(result.utilities[0], margins.max())
        same(result.posterior.mean, MODEL.condition_on(pool[picks], labels[picks], gamma=gamma).mean)
    assert [bits(MODEL), bits(pool), bits(labels), bits(candidates)] == before


@often
@given(
    st.one_of(
        st.permutations(range(N)).map(lambda rows: torch.tensor(rows).view(2, 2)),
        tensors((2, 2), torch.int64, 0, N - 1),
    ),
    tensors((N,), torch.int64, 0, C - 1),
    tensors((3, D), torch.float64, -3, 3),
    steps,
    st.sampled_from(["plugin", "mean_field"] * 3 + ["mc"]),
)
def test_look_ahead(batches: Tensor, labels: Tensor, points: Tensor, step: object, link: str) -> None:
    good = batches.dim() == 2 and batches.dtype == torch.int64 and batches.shape[1] > 0 and in_range(batches, N)
    good = good and all(len(set(row)) == len(row) for row in batches.tolist())
    good = good and (good_labels(labels, (N,)) or good_labels(labels, batches.shape))
    good = good and good_features(points) and len(points) > 0 and good_update(step, 1.0) and link != "mc"
    before = [bits(value) for value in (MODEL, POOL, batches, labels, points)]
    try:
        losses = look_ahead(MODEL, POOL, batches, labels, points, step=step, link=link)
    except ERRORS:
        assert not good
    else:
        assert good
        entries = labels[batches] if labels.dim() == 1 else labels
        for batch, given_labels, loss in zip(batches, entries, losses, strict=True):
            after = MODEL.condition_on(POOL[batch], given_labels, step)
            same(loss, (1 - after.predict_proba(points, link).amax(1)).mean())
    assert [bits(value) for value in (MODEL, POOL, batches, labels, points)] == before
