"""The tolerances of all tests of ops, and the error budget that every kernel has to keep."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.draws import Arguments, cast

# The relative error that a kernel may have where its reference happens to be exact: a few units in the last place.
FLOORS = {torch.float32: 1e-6, torch.float64: 1e-11}
# The relative error of a reference in float64 against brute force.
EXACT = 1e-11
# Below this a float32 result is denormal or close to it, and a kernel may flush it to zero.
TINY = 1e-30


class Outcome(NamedTuple):
    """What a call computed: its results, then the buffers that it changed, by name."""

    values: dict[str, Tensor]
    arguments: Arguments  # as the call left them


def mutated_names(op: Any) -> list[str]:
    """Arguments that the registered schema says are written."""
    schema = getattr(torch.ops.lapal_ext, op.name).default._schema
    return [argument.name for argument in schema.arguments if argument.is_write]


def outcome(function: Callable[..., Any], op: Any, args: Arguments) -> Outcome:
    """Call ``function`` (the op or its reference) with copies of the buffers that it changes."""
    mutated = mutated_names(op)
    args = {name: value.clone() if name in mutated and value is not None else value for name, value in args.items()}
    results = function(**args)
    results = results if isinstance(results, tuple) else (results,)
    values = {f"result {i}": result for i, result in enumerate(results)}
    values |= {name: args[name] for name in mutated if args[name] is not None}
    return Outcome(values, args)


def error_of(value: Tensor, exact: Tensor, each: bool = False) -> float:
    """Largest error among finite elements, relative to the largest element, or to each element's own size."""
    finite = exact.isfinite()
    if not finite.any():
        return 0.0
    value, exact = value.double()[finite], exact[finite]
    error = (value - exact).abs()
    size = exact.abs().clamp(min=TINY) if each else exact.abs().amax().clamp(min=TINY)
    return float((error / size).amax())


def assert_within_budget(
    op: Any,
    args: Arguments,
    dtype: torch.dtype = torch.float32,
    *,
    pool_dtype: torch.dtype | None = None,
    device: str = "cpu",
    each: bool = False,
    logit_size: float = 0.0,
    function: Callable[..., Any] | None = None,
) -> Outcome:
    """Assert err(op) <= 2 err(reference in the same dtype) + floor, both against the reference in float64.

    All three see the same rounded inputs, so that their rounding cannot hide an error. Integers, NaN and
    infinities must agree exactly.

    Args:
        op: one of ``ops.OPS``.
        args: its arguments in float64.
        dtype: what the op computes in.
        pool_dtype: what "storage" arguments are stored in; ``dtype`` by default.
        device: where the op runs.
        each: measure errors relative to each element instead of the largest one.
        logit_size: the size of the largest logits. Storing a logit rounds it by eps times its size, and changes its
            exponential by the same relative amount. No kernel can do better; a reference that does is right by chance.
        function: what is tested instead of ``op``.

    Returns:
        What the op computed.
    """
    rounded = cast(op, args, dtype, pool_dtype, device)
    exact = outcome(op.reference, op, cast(op, rounded, torch.float64)).values
    reference = outcome(op.reference, op, rounded).values
    actual = outcome(function or op, op, rounded)
    assert actual.values.keys() == reference.keys(), f"{op.name} returned {list(actual.values)}"
    for name, like in reference.items():
        value, true = actual.values[name], exact[name].cpu()
        assert (value.shape, value.dtype) == (like.shape, like.dtype), f"{op.name}, {name}: {value.shape} {value.dtype}"
        value, like = value.cpu(), like.cpu()  # noqa: PLW2901
        if not value.dtype.is_floating_point:
            assert torch.equal(value, like), f"{op.name}, {name}: {value} instead of {like}"
            continue
        for special in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(special(value), special(like)), f"{op.name}, {name}: {special.__name__} differs"
        floor = FLOORS[dtype] + logit_size * torch.finfo(dtype).eps
        allowed = 2 * error_of(like, true, each) + floor
        error = error_of(value, true, each)
        assert error <= allowed, f"{op.name}, {name}, {dtype}: error {error:.2e}, allowed {allowed:.2e}"
    return actual


def assert_exact(value: Tensor, definition: Tensor, limit: float = EXACT) -> None:
    """Assert that a float64 value equals brute force: norm of the difference relative to the norm."""
    assert value.dtype == torch.float64
    assert value.shape == definition.shape, f"shape {tuple(value.shape)} instead of {tuple(definition.shape)}"
    size = definition.norm()
    error = float((value - definition).norm() / (size if size > 0 else 1.0))
    assert error <= limit, f"relative error {error:.2e}, allowed {limit:.0e}"
