"""What holds for every op: any layout and size, no aliases, the same bits in every call and with any threads."""

import pytest
import torch
from torch import Tensor

from lapal_ext.ops import OPS
from tests.budget import Outcome, mutated_names, outcome
from tests.draws import cast
from tests.layouts import LAYOUTS, bytes_around, bytes_of, expanded
from tests.native import require_native
from tests.ops.every_op import ALL_NATIVE, ROWS, assert_same, each_letter, every_variant
from tests.ops.examples import SIZES, VARIANTS, example


@every_variant
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_result(
    name: str, variant: str, layout: str, dtype: torch.dtype, device: str
) -> None:
    op, mutated = OPS[name], mutated_names(OPS[name])
    args = cast(op, example(name, variant), dtype, device=device)
    wanted = outcome(op, op, args)
    laid = {k: LAYOUTS[layout](v) if isinstance(v, Tensor) else v for k, v in args.items()}
    before = {k: bytes_around(v) if k in mutated else bytes_of(v) for k, v in laid.items() if isinstance(v, Tensor)}
    results = op(**laid)
    results = results if isinstance(results, tuple) else (results,)
    values = {f"result {i}": r for i, r in enumerate(results)} | {k: laid[k] for k in mutated if laid[k] is not None}
    # A matrix product may add in another order in another layout.
    assert_same(Outcome(values, laid), wanted, 1e-12 if dtype == torch.float64 else 2e-5)
    for argument, was in before.items():
        now = bytes_around(laid[argument]) if argument in mutated else bytes_of(laid[argument])
        assert torch.equal(now, was), f"{argument}: the op changed memory that it must not change"


@every_variant
def test_expanded_inputs(name: str, variant: str, dtype: torch.dtype, device: str) -> None:
    op, mutated = OPS[name], mutated_names(OPS[name])
    args = cast(op, example(name, variant), dtype, device=device)
    for argument, spec in op.shapes.items():
        dims = [dim for dim, letter in enumerate(spec.dims) if letter in ROWS]
        if argument in mutated or args[argument] is None or not dims:
            continue
        stretched = expanded(args[argument], dims[0])
        wanted = outcome(op, op, args | {argument: stretched.contiguous()})
        assert_same(outcome(op, op, args | {argument: stretched}), wanted, 1e-12 if dtype == torch.float64 else 2e-5)


@each_letter(ROWS.replace("S", ""))
def test_empty(name: str, variant: str, letter: str, dtype: torch.dtype, device: str) -> None:
    op = OPS[name]
    sizes = {letter: 0} | ({"M": 0} if letter == "N" else {})  # no rows, no batches
    args = cast(op, example(name, variant, **sizes), dtype, device=device)
    actual = outcome(op, op, args)
    assert_same(actual, outcome(op.reference, op, args))
    for value in actual.values.values():
        if value.numel() and value.dtype == torch.float64:
            assert not value.isnan().any()


@each_letter(SIZES)
def test_every_size_may_be_one(name: str, variant: str, letter: str, dtype: torch.dtype, device: str) -> None:
    op = OPS[name]
    args = cast(op, example(name, variant, **{letter: 1}), dtype, device=device)
    actual, reference = outcome(op, op, args), outcome(op.reference, op, args)
    assert_same(actual, reference, 1e-12 if dtype == torch.float64 else 2e-5)
    assert not any(value.isnan().any() for value in actual.values.values())


@every_variant
def test_results_alias_nothing(name: str, variant: str, dtype: torch.dtype, device: str) -> None:
    args = cast(OPS[name], example(name, variant), dtype, device=device)
    results = OPS[name](**args)
    results = list(results) if isinstance(results, tuple) else [results]
    storages = [t.untyped_storage().data_ptr() for t in [*results, *args.values()] if isinstance(t, Tensor)]
    assert len(set(storages)) == len(storages)


@every_variant
def test_calls_repeat_to_the_bit(name: str, variant: str, dtype: torch.dtype, device: str) -> None:
    args = cast(OPS[name], example(name, variant), dtype, device=device)
    assert_same(outcome(OPS[name], OPS[name], args), outcome(OPS[name], OPS[name], args))


# Large enough that a kernel uses several threads, and no multiples of a tile.
THREADED_SIZES = {"N": 3001, "E": 1501, "D": 67, "C": 13, "b": 5, "M": 37, "S": 7, "B": 67}


@pytest.mark.parametrize(("name", "variant"), [v for v in VARIANTS if v[0] in ALL_NATIVE])
def test_threads_change_no_bit(name: str, variant: str, dtype: torch.dtype, device: str) -> None:
    require_native(name, device)
    args = cast(OPS[name], example(name, variant, **THREADED_SIZES), dtype, device=device)
    threads, outcomes = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            outcomes.append(outcome(OPS[name], OPS[name], args))
    finally:
        torch.set_num_threads(threads)
    assert_same(outcomes[1], outcomes[0])
    assert_same(outcomes[2], outcomes[0])
