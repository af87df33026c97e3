"""The cases on which every kernel runs: odd sizes, few and many classes, one row, no rows; each dtype."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext.ops import OPS
from tests.cuda_emulator.build import KERNELS
from tests.draws import Arguments, cast
from tests.layouts import LAYOUTS
from tests.ops.examples import EXAMPLES, example
from tests.ops.examples import SIZES as EXAMPLE_SIZES

# Small enough to run in a few milliseconds, and larger than the tiles and grids of the emulated device.
SIZES: dict[str, dict[str, int]] = {
    "odd": {},
    "two classes": {"C": 2},
    "many classes": {"C": 1000, "N": 5, "E": 5},
    "very many classes": {"C": 1100, "N": 3, "E": 3},
    "many rows": {"N": 517, "E": 37, "D": 37, "C": 11, "M": 5, "B": 5},
    "large hypotheses": {"b": 7, "C": 3700, "M": 4, "N": 4, "E": 133},
    "many points": {"E": 33001, "C": 2, "M": 2, "N": 3},
    "many rows and points": {"M": 300, "E": 700},
    "many samples": {"S": 293, "N": 7},
    "many rows of many classes": {"N": 400, "C": 40},
    "many features": {"D": 161, "B": 5, "N": 9},
    "aligned rows": {"D": 264, "B": 2, "N": 21},
    "one": dict.fromkeys("NEDbMSBL", 1),
    "no rows": {"N": 0, "M": 0, "B": 0},
    "no points": {"E": 0, "L": 0},
}
# For ops that have all of its letters: 300 hypotheses of one label after the other would take minutes.
_ALL_LETTERS = {"many rows and points"}
_FLOATS = (torch.float32, torch.float64)


class Case(NamedTuple):
    """One call of one op."""

    name: str
    variant: str
    sizes: str
    dtype: torch.dtype
    pool_dtype: torch.dtype
    layout: str = "contiguous"

    def arguments(self) -> Arguments:
        """In float64 and contiguous, as ``assert_within_budget`` expects them."""
        return example(self.name, self.variant, **SIZES[self.sizes])

    def rounded(self) -> Arguments:
        """As the kernel is called."""
        args = cast(OPS[self.name], self.arguments(), self.dtype, self.pool_dtype)
        lay = LAYOUTS[self.layout]
        return {name: lay(value) if isinstance(value, Tensor) else value for name, value in args.items()}

    @property
    def essential(self) -> bool:
        """Whether the quick run includes it; essential cases cover each size, dtype, variant and layout of an op."""
        first = next(iter(EXAMPLES[self.name]))
        if self.variant != first:
            return self.sizes == "odd" and self.pool_dtype == self.dtype
        if self.layout != "contiguous" or self.sizes not in {"odd", "many features", "aligned rows"}:
            return self.dtype == torch.float32
        return self.sizes == "odd" or self.pool_dtype == self.dtype

    def __str__(self) -> str:
        dtypes = dict.fromkeys([self.dtype, self.pool_dtype])
        names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
        return "-".join([self.name, self.variant, self.sizes.replace(" ", "_"), *names, self.layout])


def calls_out_of_range(name: str) -> Iterator[tuple[str, Arguments]]:
    """Calls with one index that is just or far out of range, each with words that say which."""
    for argument, size in {"batches": "N", "targets": "C"}.items():
        for wrong in (-1, EXAMPLE_SIZES[size], 10**12, -(10**12)):
            for dtype in _FLOATS if argument in OPS[name].shapes else ():
                args = cast(OPS[name], example(name), dtype)
                args[argument].view(-1)[2] = wrong
                yield f"{argument} {wrong} {dtype}", args


def letters(name: str) -> set[str]:
    return {letter for spec in OPS[name].shapes.values() for letter in spec.dims}


def _concerns(name: str, sizes: str) -> bool:
    """Whether these sizes change anything for an op."""
    changed = SIZES[sizes].keys()
    shared = changed & letters(name)
    return shared == changed if sizes in _ALL_LETTERS else bool(shared) or not changed


def _pool_dtypes(name: str, dtype: torch.dtype) -> list[torch.dtype]:
    stored = any(spec.kind == "storage" for spec in OPS[name].shapes.values())
    return [dtype, torch.bfloat16, torch.float16] if stored else [dtype]


def cases() -> list[Case]:
    """All cases, without sizes that an op does not have; only some sizes in half precision and other layouts."""
    return [
        Case(name, variant, sizes, dtype, pool_dtype, layout)
        for name in KERNELS
        for variant in EXAMPLES[name]
        for sizes in SIZES
        if _concerns(name, sizes)
        for dtype in _FLOATS
        for pool_dtype in _pool_dtypes(name, dtype)
        if pool_dtype == dtype or sizes in {"odd", "many features", "aligned rows"}
        for layout in (
            LAYOUTS if sizes in {"many rows", "many rows and points"} and dtype == pool_dtype else ["contiguous"]
        )
    ]
