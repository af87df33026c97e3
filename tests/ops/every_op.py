"""Shared by the tests of all ops: their cases, and the comparison of two outcomes."""

from collections.abc import Iterable

import pytest
import torch

from lapal_ext.ops import OPS
from tests.budget import Outcome
from tests.native import NATIVE_OPS
from tests.ops.examples import VARIANTS

ALL_NATIVE: set[str] = set().union(*NATIVE_OPS.values())
every_op = pytest.mark.parametrize("name", sorted(OPS))
every_variant = pytest.mark.parametrize(("name", "variant"), VARIANTS)
every_tensor = pytest.mark.parametrize(("name", "argument"), [(n, a) for n in sorted(OPS) for a in OPS[n].shapes])
ROWS = "NEMBS"  # letters of dimensions with entries that may repeat; all but S may be zero


def each_letter(letters: Iterable[str], variants: list[tuple[str, str]] = VARIANTS) -> pytest.MarkDecorator:
    """Every variant of every op, once for each of these letters that its shapes have."""
    has = {name: {letter for spec in OPS[name].shapes.values() for letter in spec.dims} for name, _ in variants}
    cases = [(name, variant, letter) for name, variant in variants for letter in letters if letter in has[name]]
    return pytest.mark.parametrize(("name", "variant", "letter"), cases)


def overload(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.lapal_ext, name).default


def assert_same(actual: Outcome, wanted: Outcome, tolerance: float = 0.0) -> None:
    assert actual.values.keys() == wanted.values.keys()
    for name, value in wanted.values.items():
        torch.testing.assert_close(
            actual.values[name],
            value,
            rtol=tolerance,
            atol=tolerance,
            equal_nan=True,
            msg=lambda m, n=name: f"{n}: {m}",
        )
