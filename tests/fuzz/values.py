"""Arguments that are wrong in one way each, with the error that they must raise.

Every table maps a few words, which name the test, to a ``Bad``. The message starts with the name of the argument; what
follows it is the pattern in the table.
"""

import math
import warnings
from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lapal_ext import LastLayerLaplace, NotFittedError


class Bad(NamedTuple):
    """A wrong value, the exact type of the error, and what its message says after the argument's name."""

    value: object
    error: type[Exception]
    says: str


Table = Mapping[str, Bad]


def put(tensor: Tensor, value: float, entry: int = 0) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[entry] = value
    return changed


def nested(x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that they are a prototype
        return torch.nested.nested_tensor(list(x))


def not_dense(tensor: Tensor) -> Table:
    return {
        "None": Bad(None, TypeError, r"must be a torch\.Tensor.*, got NoneType"),
        "list": Bad(tensor.tolist(), TypeError, r"must be a torch\.Tensor.*, got list"),
        "masked": Bad(np.ma.array(tensor.numpy()), TypeError, "must not be a masked array"),
        "sparse": Bad(tensor.to_sparse(), TypeError, r"must be a dense tensor, got layout torch\.sparse_coo"),
    }


def features(x: Tensor) -> Table:
    other = torch.float64 if x.dtype == torch.float32 else torch.float32
    return {
        **not_dense(x),
        "nested": Bad(nested(x[:2]), TypeError, "must be a dense tensor, got a nested one"),
        "meta": Bad(x.to("meta"), ValueError, r"must .*(got meta|on the meta device)"),
        "a vector": Bad(x[0], ValueError, r"must have shape \(N, (D|\d+)\).*, got \(\d+,\)"),
        "3-d": Bad(x[None], ValueError, r"must have shape \(N, (D|\d+)\).*, got \(1, \d+, \d+\)"),
        "0-d": Bad(x[0, 0], ValueError, r"must have shape \(N, (D|\d+)\).*, got \(\)"),
        "no columns": Bad(x[:, :0], ValueError, r"must have .*, got \(\d+, 0\)"),
        **{
            str(wrong): Bad(x.to(wrong), TypeError, rf"must be .*, got {wrong}")
            for wrong in (torch.int64, torch.int8, torch.bool, torch.complex64)
        },
        **({} if x.dtype == torch.float32 else {"half": Bad(x.half(), TypeError, r"must be .*, got torch\.float16")}),
        "a NaN": Bad(put(x, math.nan), ValueError, r"must be finite, got 1 NaN or infinite of \d+ values"),
        "an infinity": Bad(put(x, -math.inf, 1), ValueError, "must be finite, got 1 NaN or infinite"),
        "other": Bad(x.to(other), TypeError, rf"must be .*got {other}"),
    }


def features_of(x: Tensor) -> Table:
    """Wrong features where the width is fixed by an existing layer."""
    return {
        **features(x),
        "one column less": Bad(x[:, :-1], ValueError, rf"must have shape \(N, {x.shape[1]}\), got"),
        "one column more": Bad(torch.cat([x, x[:, :1]], 1), ValueError, rf"must have shape \(N, {x.shape[1]}\), got"),
    }


def overflowing(x: Tensor) -> Table:
    """Finite features whose variance is not."""
    largest = torch.finfo(x.dtype).max
    return {
        "huge": Bad(x * largest**0.8, ValueError, "must give results that are finite"),
        "one huge": Bad(put(x, largest / 2), ValueError, "must give results that are finite"),
    }


def no_rows(x: Tensor) -> Table:
    return {"no rows": Bad(x[:0], ValueError, r"must have at least one row.*, got \(0, \d+\)")}


def labels(y: Tensor, n_classes: int) -> Table:
    allowed = rf"must lie in \[0, {n_classes}\), one of the {n_classes} classes, got"
    return {
        **{words: bad for words, bad in not_dense(y).items() if words != "list"},
        "a list of floats": Bad(y.double().tolist(), TypeError, "must hold integers, got a list with float"),
        "meta": Bad(y.to("meta"), ValueError, "must be on cpu, got meta"),
        "float": Bad(y.double(), TypeError, r"must hold integers, got torch\.float64"),
        "NaN": Bad(torch.full(y.shape, math.nan), TypeError, "must hold integers"),
        "bool": Bad(y > 0, TypeError, r"must hold integers, got torch\.bool"),
        "complex": Bad(y.to(torch.complex64), TypeError, "must hold integers"),
        "negative": Bad(put(y, -1), ValueError, f"{allowed} -1"),
        "C": Bad(put(y, n_classes, 1), ValueError, f"{allowed} {n_classes}"),
        "beyond int32": Bad(put(y, 2**40), ValueError, f"{allowed} {2**40}"),
        "one too few": Bad(y[:-1], ValueError, r"must have shape \(\d+,\), .*got \(\d+,\)"),
        "a column": Bad(y[:, None], ValueError, r"must have shape .*got \(\d+, 1\)"),
        "a scalar": Bad(y[0], ValueError, r"must have shape .*got \(\)"),
    }


def numbers(*, above_zero: bool = False) -> Table:
    bound = "must be greater than 0" if above_zero else "must be at least 0"
    return {
        **{
            type(value).__name__: Bad(value, TypeError, f"must be a number, got {type(value).__name__}")
            for value in ("1", None, True, [1.0], 1j, torch.tensor(1.0), np.array([1.0, 2.0]), np.True_, b"1")
        },
        "NaN": Bad(math.nan, ValueError, "must be finite, got nan"),
        "infinite": Bad(math.inf, ValueError, "must be finite, got inf"),
        "beyond float64": Bad(10**400, ValueError, "must be finite"),
        "NaN of numpy": Bad(np.float32("nan"), ValueError, "must be finite"),
        "negative": Bad(-0.5, ValueError, f"{bound}, got -0.5"),
        **({"zero": Bad(0.0, ValueError, f"{bound}, got 0")} if above_zero else {}),
    }


GOOD_NUMBERS = (1, np.float32(1.0), np.float64(1.0), np.int32(1), Fraction(1, 1))


def integers(*, at_least: int, at_most: int | None = None) -> Table:
    above = {} if at_most is None else {"too many": Bad(at_most + 1, ValueError, f"must be at most {at_most} ")}
    return {
        **above,
        **{
            f"{type(value).__name__} {value}": Bad(value, TypeError, "must be an integer, got")
            for value in (3.0, "3", True, [3], math.nan, torch.tensor(3.0), torch.tensor(True), np.float64(3))
        },
        "several": Bad(torch.tensor([1, 2]), TypeError, "must be an integer, got Tensor"),
        "too few": Bad(at_least - 1, ValueError, f"must be at least {at_least}, got {at_least - 1}"),
        "negative": Bad(-1, ValueError, f"must be at least {at_least}, got -1"),
        "beyond int64": Bad(10**30, ValueError, "must be at most"),
    }


def choices() -> Table:
    values = ("bogus", "", "Newton", 3, True, b"newton", ["newton"])
    return {repr(value): Bad(value, ValueError, "must be one of '.*', got") for value in values}


def choices_not_none() -> Table:
    return {**choices(), "None": Bad(None, ValueError, "must be one of '.*', got None")}


def flags() -> Table:
    values = ("no", 1, 0, None, torch.tensor([1, 2]))
    return {repr(value): Bad(value, TypeError, "must be True or False, got") for value in values}


def standardize() -> Table:
    return {
        **{repr(value): Bad(value, TypeError, "must be True, False or 'columns', got") for value in (1, 0, None, 1.0)},
        **{value: Bad(value, ValueError, "must be True, False or 'columns', got") for value in ("no", "column", "")},
    }


def generators() -> Table:
    values = {
        "str": "cpu",
        "int": 0,
        "OpaqueBaseMeta|type": torch.Generator,
        r"numpy\.random\.Generator": np.random.default_rng(0),
    }
    return {
        kind: Bad(value, TypeError, rf"must be a torch\.Generator or None, got ({kind})$")
        for kind, value in values.items()
    }


def posteriors(good: LastLayerLaplace) -> Table:
    weight = torch.zeros(good.num_classes, good.num_features)
    return {
        "None": Bad(None, TypeError, "must be a LastLayerLaplace, got NoneType"),
        "a layer": Bad(good.to_linear(), TypeError, "must be a LastLayerLaplace, got Linear"),
        "the class": Bad(LastLayerLaplace, TypeError, "must be a LastLayerLaplace, got type"),
        "half": Bad(good.clone().half(), TypeError, r"must be float32 or float64, got torch\.float16"),
        "not fitted": Bad(LastLayerLaplace(weight), NotFittedError, r"must be fitted: call fit\(features\)"),
    }


def class_names(n_classes: int) -> Table:
    names = [f"class {number}" for number in range(n_classes)]
    return {
        "a text": Bad("".join("abcdefghijkl"[:n_classes]), TypeError, "must be a sequence of str or None, got str"),
        "a number": Bad(n_classes, TypeError, "must be a sequence of str or None, got int"),
        "0-d": Bad(np.array("abc"), TypeError, "must be a sequence of str or None, got ndarray"),
        "numbers": Bad(list(range(n_classes)), TypeError, "must hold str, got int"),
        "bytes": Bad([name.encode() for name in names], TypeError, "must hold str, got bytes"),
        "one too few": Bad(names[:-1], ValueError, f"must hold {n_classes} names, one per class, got {n_classes - 1}"),
        "one too many": Bad([*names, "x"], ValueError, f"must hold {n_classes} names, .* got {n_classes + 1}"),
        "none": Bad([], ValueError, f"must hold {n_classes} names, one per class, got 0"),
        "twice the same": Bad([*names[:-1], names[0]], ValueError, "must not hold duplicates, got 'class 0' more than"),
        "an empty one": Bad(
            [*names[:-1], ""], ValueError, f"must not be empty, got an empty name for class {n_classes - 1}"
        ),
    }


def layers_to_write_to(good: nn.Linear) -> Table:
    """Layers into which the mean of a posterior does not fit; it fits into ``good``."""
    n_outputs, n_inputs = good.weight.shape
    dtype = good.weight.dtype

    def layer(rows: int, columns: int, kind: torch.dtype = dtype, *, bias: bool = True) -> nn.Linear:
        return nn.utils.skip_init(nn.Linear, columns, rows, bias=bias, dtype=kind)

    shape = rf"\.weight must have shape \({n_outputs}, {n_inputs}\) to match mean .*, got"
    broken = layer(n_outputs, n_inputs)
    broken.bias = nn.Parameter(torch.zeros(n_outputs + 1, dtype=dtype))
    other = torch.float64 if dtype == torch.float32 else torch.float32
    return {
        "a weight": Bad(good.weight, TypeError, r"must be a torch\.nn\.Linear, got Parameter"),
        "a wide convolution": Bad(
            nn.Conv2d(n_inputs, n_outputs, 3, dtype=dtype), ValueError, r"\.weight must have shape"
        ),
        "one class less": Bad(layer(n_outputs - 1, n_inputs), ValueError, shape),
        "one feature more": Bad(layer(n_outputs, n_inputs + 1), ValueError, shape),
        "the other precision": Bad(
            layer(n_outputs, n_inputs, other), TypeError, rf"\.weight must be {dtype} like mean"
        ),
        "half": Bad(
            layer(n_outputs, n_inputs).half(), TypeError, rf"\.weight must be {dtype} like mean, got torch.float16"
        ),
        "no bias": Bad(
            layer(n_outputs, n_inputs, bias=False), ValueError, "must have a bias like the posterior, got a"
        ),
        "a bias of another length": Bad(broken, ValueError, rf"\.bias must have shape \({n_outputs},\) to match mean"),
        "meta": Bad(layer(n_outputs, n_inputs).to("meta"), ValueError, r"\.weight must hold values"),
    }


def heads(dtype: torch.dtype) -> Table:
    def layer(n_outputs: int = 4, kind: torch.dtype = dtype) -> nn.Linear:
        linear = nn.utils.skip_init(nn.Linear, 12, n_outputs, dtype=kind)
        nn.init.zeros_(linear.weight)
        nn.init.zeros_(linear.bias)
        return linear

    broken, biased = layer(), layer()
    with torch.no_grad():
        broken.weight[0, 0], biased.bias[0] = math.nan, math.inf
    return {
        "None": Bad(None, TypeError, r"must be a torch\.nn\.Linear, got NoneType"),
        "a weight": Bad(broken.weight, TypeError, r"must be a torch\.nn\.Linear, got Parameter"),
        "meta": Bad(layer().to("meta"), ValueError, r"\.weight must hold values"),
        "a NaN": Bad(broken, ValueError, r"\.weight must be finite"),
        "an infinite bias": Bad(biased, ValueError, r"\.bias must be finite"),
    }
