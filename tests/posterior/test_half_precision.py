"""Half precision as storage: the rows and the layers of a model in float32, with the values that they have there."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lapal_ext import (
    LastLayerLaplace,
    SelectionResult,
    SequentialSelector,
    baselines,
    expected_error_reduction,
    look_ahead,
    select_batch,
    select_lookahead,
)
from lapal_ext.acquisition.registry import ACQUISITIONS
from tests.draws import Draw
from tests.fuzz.calls import bits

N, D, C = 40, 12, 4
HALVES = pytest.mark.parametrize("half", [torch.float16, torch.bfloat16], ids=str)


def doubt_per_norm(posterior: LastLayerLaplace, rows: Tensor) -> Tensor:
    """The acquisition of lapal_ext/README.md."""
    return posterior.predict_latent(rows).variance / rows.norm(dim=1)


def products(posterior: LastLayerLaplace, rows: Tensor) -> Tensor:
    return (rows @ posterior.to_linear().weight.detach().T).logsumexp(1)


def ask_and_tell(model: LastLayerLaplace, pool: Tensor, **options: object) -> object:
    selector = SequentialSelector(model, pool, **options)
    row = selector.ask()
    selector.tell(row, 1)
    return row, selector.ask(3), selector.posterior


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


LABELS = torch.arange(N) % C
CALLS: dict[str, Callable[[LastLayerLaplace, Tensor], object]] = {
    "predict_logits": lambda model, x: model.predict_logits(x),
    "predict_latent": lambda model, x: tuple(model.predict_latent(x)),
    "predict_proba": lambda model, x: model.predict_proba(x),
    "predict_proba, mc": lambda model, x: model.predict_proba(x, "mc", 5, seeded()),
    "update": lambda model, x: model.update(x, LABELS),
    "update, jointly": lambda model, x: model.update(x, LABELS, step="joint"),
    "condition_on": lambda model, x: model.condition_on(x[:1], LABELS[:1]),
    "fit": lambda model, x: model.fit(x),
    "log_marginal_likelihood": lambda model, x: model.log_marginal_likelihood(x, LABELS),
    "fit_map": lambda _, x: LastLayerLaplace.fit_map(x, LABELS, C),
    "untrained": lambda _, x: LastLayerLaplace.untrained(x, C),
    "untrained, by columns": lambda _, x: LastLayerLaplace.untrained(x, C, standardize="columns"),
    "optimize_prior_precision": lambda _, x: LastLayerLaplace.optimize_prior_precision(
        x, LABELS, C, torch.tensor([1.0]), generator=seeded()
    ),
    "from_linear": lambda model, x: LastLayerLaplace.from_linear(model.to_linear(), x, standardize=True),
    "first_order": lambda model, x: baselines.first_order(model, x, LABELS),
    "monte_carlo": lambda model, x: baselines.monte_carlo(model, x, LABELS, x[:3], n_samples=7, generator=seeded()),
    "look_ahead": lambda model, x: look_ahead(model, x, LABELS.view(10, C), LABELS, x[:9]),
    "expected_error_reduction": lambda model, x: expected_error_reduction(model, x, x[:9]),
    "select_lookahead": lambda model, x: select_lookahead(model, x, x[:9], 3, 9, generator=seeded(), labelled=x[:2]),
    "SequentialSelector": lambda model, x: ask_and_tell(model, x, labelled=x[:2]),
    "a callable": lambda model, x: select_batch(model, x, 5, doubt_per_norm),
    "a callable with products": lambda model, x: select_batch(model, x, 5, products),
    "a callable, one by one": lambda model, x: ask_and_tell(model, x, acquisition=products),
    "a callable proposes": lambda model, x: select_lookahead(
        model, x, x[:9], 3, 2, proposals=[products], generator=seeded()
    ),
    **{
        f"labelled for {name}": lambda model, x, name=name: select_batch(
            model, x, 5, name, labelled=x[:3], generator=seeded()
        )
        for name in ACQUISITIONS
    },
}


def all_bits(result: object) -> object:
    if isinstance(result, (SelectionResult, tuple)):
        return [all_bits(part) for part in result]
    return bits(result) if bits(result) is not None else result


@HALVES
@pytest.mark.parametrize("name", CALLS)
def test_rows_have_the_values_that_they_have_in_float32(draw: Draw, name: str, half: torch.dtype) -> None:
    model = LastLayerLaplace.fit_map(draw.normal(N, D).float(), LABELS, C)
    x = draw.normal(N, D).to(half)
    if name.startswith("labelled for"):  # kernels read such a pool without a copy, and may round differently
        first, second = CALLS[name](model.clone(), x), CALLS[name](model.clone(), x.float())
        assert first.indices.tolist() == second.indices.tolist()
        return
    assert all_bits(CALLS[name](model.clone(), x)) == all_bits(CALLS[name](model.clone(), x.float()))


@HALVES
@pytest.mark.parametrize("name", [name for name in CALLS if "fit_map" not in name and "untrained" not in name])
def test_a_double_model_takes_no_half_precision(draw: Draw, name: str, half: torch.dtype) -> None:
    if name == "optimize_prior_precision":
        return
    model = LastLayerLaplace.fit_map(draw.normal(N, D), LABELS, C)
    with pytest.raises(TypeError, match=r"must be .*, got torch\.(float16|bfloat16)"):
        CALLS[name](model, draw.normal(N, D).to(half))


@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith(("predict", "update", "cond", "first"))])
def test_a_model_in_float32_takes_no_float64(draw: Draw, name: str) -> None:
    model = LastLayerLaplace.fit_map(draw.normal(N, D).float(), LABELS, C)
    with pytest.raises(TypeError, match=r"must be torch\.float32 like mean, got torch\.float64"):
        CALLS[name](model, draw.normal(N, D))


def test_a_norm_that_overflows_in_float16_is_right_for_a_callable(draw: Draw) -> None:
    model = LastLayerLaplace.fit_map(1e4 * draw.normal(N, D).float(), LABELS, C)
    pool = (3e4 * draw.normal(N, D)).clamp(-6e4, 6e4).half()
    assert not bool(pool.norm(dim=1).isfinite().all())
    picks = [select_batch(model, x, 5, lambda _, rows: rows.norm(dim=1)).indices.tolist() for x in (pool, pool.float())]
    assert picks[0] == picks[1]


@HALVES
def test_many_rows_are_widened_a_tile_at_a_time(draw: Draw, half: torch.dtype) -> None:
    model = LastLayerLaplace.fit_map(draw.normal(N, D).float(), LABELS, C)
    x = draw.normal(20_000, D).to(half)
    torch.testing.assert_close(model.predict_logits(x), model.predict_logits(x.float()), rtol=1e-6, atol=1e-6)
    assert model.predict_logits(x[:0]).shape == (0, C)


# Layers


@HALVES
@pytest.mark.parametrize("bias", [True, False])
def test_a_head_in_half_precision_is_computed_in_float32(draw: Draw, half: torch.dtype, bias: bool) -> None:
    head = nn.Linear(D, C, bias=bias, dtype=half)
    x = draw.normal(N, D).to(half)
    wide = nn.Linear(D, C, bias=bias)
    wide.load_state_dict(head.state_dict())
    for standardize in (True, False, "columns"):
        made = LastLayerLaplace.from_linear(head, x, standardize=standardize)
        assert made.mean.dtype == torch.float32
        assert all_bits(made) == all_bits(LastLayerLaplace.from_linear(wide, x.float(), standardize=standardize))
        assert all_bits(made) == all_bits(LastLayerLaplace.from_linear(head, x.float(), standardize=standardize))
        torch.testing.assert_close(made.predict_logits(x), wide(x.float()).detach(), rtol=1e-4, atol=1e-4)


@HALVES
@pytest.mark.parametrize("bias", [True, False])
def test_a_head_in_half_precision_is_written_back(draw: Draw, half: torch.dtype, bias: bool) -> None:
    head = nn.Linear(D, C, bias=bias, dtype=half)
    before = bits(head)
    x = draw.normal(N, D).to(half)
    model = LastLayerLaplace.from_linear(head, x)
    assert bits(head) == before
    model.to_linear(out=head)
    assert bits(head) == before  # nothing was learned, so that nothing is rounded
    model.update(x[:9], LABELS[:9])
    assert model.to_linear(out=head) is head
    exact = model.to_linear()
    assert exact.weight.dtype == torch.float32
    for name, parameter in head.named_parameters():
        assert parameter.dtype == half
        assert torch.equal(parameter.detach(), getattr(exact, name).detach().to(half))


def test_weights_beyond_float16_are_refused_and_nothing_is_written() -> None:
    for weight, bias in ((torch.full((C, D), 1e5), torch.zeros(C)), (torch.zeros(C, D), torch.full((C,), 1e5))):
        model = LastLayerLaplace(weight, bias=bias)
        out = nn.Linear(D, C, dtype=torch.float16)
        before = bits(out)
        with pytest.raises(ValueError, match=r"mean must give results that are finite in torch\.float16"):
            model.to_linear(out=out)
        assert bits(out) == before


def test_dtypes_that_do_not_fit_stay_errors(draw: Draw) -> None:
    single, double = (LastLayerLaplace(draw.normal(C, D).to(dtype)) for dtype in (torch.float32, torch.float64))
    for model, dtype in ((single, torch.float64), (double, torch.float32), (double, torch.float16)):
        with pytest.raises(TypeError, match=rf"out\.weight must be {model.mean.dtype} like mean, got {dtype}"):
            model.to_linear(out=nn.Linear(D, C, bias=False, dtype=dtype))
    with pytest.raises(TypeError, match=r"features must be torch\.float32 like mean, got torch\.float64"):
        LastLayerLaplace.from_linear(nn.Linear(D, C).half(), draw.normal(N, D))
