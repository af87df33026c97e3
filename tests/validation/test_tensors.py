import math

import numpy as np
import pytest
import torch
from torch import Tensor

from lapal_ext.validation.scalars import check_choice, check_flag, check_integer, check_number
from lapal_ext.validation.tensors import (
    ShapeSpec,
    as_labels,
    check_distinct,
    check_finite,
    check_index_range,
    check_labels,
    check_tensors,
    shape_text,
)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def check(specs: dict[str, str], **values: object) -> dict[str, int]:
    return check_tensors({name: ShapeSpec.parse(text) for name, text in specs.items()}, values)


def message(error: type[Exception], specs: dict[str, str], **values: object) -> str:
    with pytest.raises(error) as caught:
        check(specs, **values)
    assert type(caught.value) is error
    return str(caught.value)


def zeros(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(size, dtype=dtype)


# Specifications


@pytest.mark.parametrize(
    ("text", "kind", "dims"),
    [
        ("[N, D]", "compute", ("N", "D")),
        ("int64 [M, b]", "int64", ("M", "b")),
        ("[]", "compute", ()),
        ("bool [N]", "bool", ("N",)),
        ("storage [N, 128]", "storage", ("N", "128")),
    ],
)
def test_specification(text: str, kind: str, dims: tuple[str, ...]) -> None:
    assert ShapeSpec.parse(text) == (kind, dims)


@pytest.mark.parametrize("text", ["N, D", "", "[N", "two words [N]"])
def test_other_texts_are_no_specification(text: str) -> None:
    with pytest.raises(ValueError, match="not a shape specification"):
        ShapeSpec.parse(text)


def test_shapes_are_written_like_tuples() -> None:
    assert [shape_text(dims) for dims in ((), (3,), ("N", 128), torch.Size([2, 3]))] == [
        "()",
        "(3,)",
        "(N, 128)",
        "(2, 3)",
    ]


# Shapes


def test_the_message_names_both_shapes() -> None:
    specs = {"covariance": "[D, D]", "features": "[N, D]"}
    assert message(ValueError, specs, covariance=zeros(128, 128), features=zeros(32, 64)) == (
        "features must have shape (N, 128) to match covariance (128, 128), got (32, 64)"
    )


def test_the_size_of_each_letter_is_returned() -> None:
    specs = {"logits": "[N, C]", "batches": "int64 [M, b]", "scalar": "[]"}
    assert check(specs, logits=zeros(4, 3), batches=zeros(2, 5, dtype=torch.int64), scalar=zeros()) == {
        "N": 4, "C": 3, "M": 2, "b": 5,
    }  # fmt: skip


def test_an_absent_argument_is_skipped() -> None:
    assert check({"logits": "[N, C]", "variance": "[N]"}, logits=zeros(4, 3), variance=None) == {
        "N": 4,
        "C": 3,
    }


def test_empty_tensors_pass() -> None:
    assert check({"logits": "[N, C]", "variance": "[N]"}, logits=zeros(0, 3), variance=zeros(0)) == {
        "N": 0,
        "C": 3,
    }


@pytest.mark.parametrize(
    ("specs", "sizes", "wanted"),
    [
        ({"x": "[N, D]"}, {"x": (3,)}, "x must have shape (N, D), got (3,)"),
        ({"x": "[N]"}, {"x": ()}, "x must have shape (N,), got ()"),
        ({"x": "[]"}, {"x": (1,)}, "x must have shape (), got (1,)"),
        ({"x": "[D, D]"}, {"x": (3, 4)}, "x must have shape (D, D), got (3, 4)"),
        ({"x": "[N, 3]"}, {"x": (2, 4)}, "x must have shape (N, 3), got (2, 4)"),
        (
            {"a": "[N, C]", "b": "[N]"},
            {"a": (4, 3), "b": (5,)},
            "b must have shape (4,) to match a (4, 3), got (5,)",
        ),
        (
            {"a": "[N]", "b": "[D]", "c": "[N, D]"},
            {"a": (4,), "b": (3,), "c": (3, 4)},
            "c must have shape (4, 3) to match a (4,) and b (3,), got (3, 4)",
        ),
        (
            {"a": "[N, C]", "b": "[N, E]"},
            {"a": (4, 3), "b": (4, 3, 1)},
            "b must have shape (4, E) to match a (4, 3), got (4, 3, 1)",
        ),
    ],
)
def test_shape_messages(specs: dict[str, str], sizes: dict[str, tuple[int, ...]], wanted: str) -> None:
    assert message(ValueError, specs, **{name: zeros(*size) for name, size in sizes.items()}) == wanted


def test_a_failed_match_does_not_bind_letters() -> None:
    """The letters of a wrong argument are not reported as known sizes."""
    text = message(ValueError, {"a": "[N]", "b": "[M, N]"}, a=zeros(2), b=zeros(7, 3))
    assert text == "b must have shape (M, 2) to match a (2,), got (7, 3)"


# Types and devices


@pytest.mark.parametrize("value", [[1.0], np.zeros(3), 1.0, "x"])
def test_not_a_tensor(value: object) -> None:
    text = message(TypeError, {"x": "[N]"}, x=value)
    assert text == f"x must be a torch.Tensor, got {type(value).__name__}"


def test_a_tensor_of_another_library_is_named_with_its_module() -> None:
    kind = type("Tensor", (), {"__module__": "other._core.tensors"})
    assert message(TypeError, {"x": "[N]"}, x=kind()) == "x must be a torch.Tensor, got other.tensors.Tensor"


def test_sparse() -> None:
    assert message(TypeError, {"x": "[N]"}, x=zeros(3).to_sparse()) == (
        "x must be a dense tensor, got layout torch.sparse_coo"
    )


@pytest.mark.parametrize(
    ("spec", "dtype", "wanted"),
    [
        ("[N]", torch.float16, "x must be float32 or float64, got torch.float16"),
        ("[N]", torch.int64, "x must be float32 or float64, got torch.int64"),
        ("storage [N]", torch.int8, "x must be float32, float64, bfloat16 or float16, got torch.int8"),
        ("int64 [N]", torch.int32, "x must be torch.int64, got torch.int32"),
        ("bool [N]", torch.uint8, "x must be torch.bool, got torch.uint8"),
        ("float64 [N]", torch.float32, "x must be torch.float64, got torch.float32"),
    ],
)
def test_dtype_messages(spec: str, dtype: torch.dtype, wanted: str) -> None:
    assert message(TypeError, {"x": spec}, x=zeros(3, dtype=dtype)) == wanted


def test_compute_arguments_share_their_dtype() -> None:
    specs = {"pool": "storage [N, D]", "u": "[D]", "g": "[C]"}
    wrong = {"pool": zeros(2, 3, dtype=torch.float16), "u": zeros(3), "g": zeros(4, dtype=torch.float64)}
    assert message(TypeError, specs, **wrong) == "g must be torch.float32 like u, got torch.float64"
    for dtype in DTYPES:
        check(specs, **wrong | {"pool": zeros(2, 3, dtype=dtype), "g": zeros(4)})


def test_devices() -> None:
    text = message(ValueError, {"a": "[N]", "b": "[N]"}, a=zeros(2), b=torch.zeros(2, device="meta"))
    assert text == "b must be on cpu like a, got meta"


# Choices and numbers


@pytest.mark.parametrize("value", ["Newton", "", None, 3])
def test_choice(value: object) -> None:
    check_choice("step", "newton", ("line_search", "newton"))
    with pytest.raises(ValueError, match=r"step must be one of 'line_search', 'newton', got") as caught:
        check_choice("step", value, ("line_search", "newton"))
    assert str(caught.value).endswith(f"got {value!r}")


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int64(2), np.float64(2)])
def test_number(value: object) -> None:
    number = check_number("gamma", value, at_least=0.0)
    assert type(number) is float
    assert number == 2.0


@pytest.mark.parametrize("value", ["2", None, True, [2.0], torch.tensor(2.0), 2j])
def test_not_a_number(value: object) -> None:
    with pytest.raises(TypeError, match=rf"^gamma must be a number, got {type(value).__name__}$"):
        check_number("gamma", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_number_must_be_finite(value: float) -> None:
    with pytest.raises(ValueError, match=r"^gamma must be finite, got "):
        check_number("gamma", value)


def test_number_bounds() -> None:
    assert check_number("gamma", 0, at_least=0.0) == 0.0
    with pytest.raises(ValueError, match=r"^gamma must be at least 0, got -0\.5$"):
        check_number("gamma", -0.5, at_least=0.0)
    with pytest.raises(ValueError, match=r"^prior must be greater than 0, got 0$"):
        check_number("prior", 0, above=0.0)


@pytest.mark.parametrize("value", [3, np.int32(3), torch.tensor(3)])
def test_integer(value: object) -> None:
    number = check_integer("batch_size", value, at_least=1, at_most=3)
    assert type(number) is int
    assert number == 3


@pytest.mark.parametrize("value", [3.0, "3", None, True, np.float64(3)])
def test_not_an_integer(value: object) -> None:
    with pytest.raises(TypeError, match=rf"^batch_size must be an integer, got {type(value).__name__}$"):
        check_integer("batch_size", value, at_least=1)


def test_integer_bounds() -> None:
    with pytest.raises(ValueError, match=r"^batch_size must be at least 1, got 0$"):
        check_integer("batch_size", 0, at_least=1)
    with pytest.raises(ValueError, match=r"^batch_size must be at most 5, got 6$"):
        check_integer("batch_size", 6, at_least=1, at_most=5)
    with pytest.raises(ValueError, match=r"^batch_size must be at most 5 \(rows of the pool\), got 6$"):
        check_integer("batch_size", 6, at_least=1, at_most=5, limit="rows of the pool")


# Values


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_finite(dtype: torch.dtype, bad: float) -> None:
    value = zeros(5, 3, dtype=dtype)
    check_finite("features", value)
    value[2, 1] = value[4, 0] = bad
    with pytest.raises(ValueError, match=r"^features must be finite, got 2 .* of 15 values, the first in row 2$"):
        check_finite("features", value)


def test_opposite_infinities_are_found() -> None:
    with pytest.raises(ValueError, match=r"got 2 NaN or infinite"):
        check_finite("features", torch.tensor([math.inf, -math.inf, 1.0]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_finite_values_pass_even_if_their_sum_overflows(dtype: torch.dtype) -> None:
    check_finite("features", torch.full((1000,), torch.finfo(dtype).max, dtype=dtype))


def test_a_tensor_without_values_passes_as_finite() -> None:
    check_finite("features", zeros(0, 3))


@pytest.mark.parametrize("wrong", [-1, 3, 7])
def test_labels(wrong: int) -> None:
    check_labels("targets", torch.tensor([0, 2, 1]), 3)
    check_labels("targets", torch.tensor([], dtype=torch.int64), 3)
    with pytest.raises(ValueError, match=rf"^targets must lie in \[0, 3\), one of the 3 classes, got {wrong}$"):
        check_labels("targets", torch.tensor([0, wrong, 1]), 3)


def test_index_range() -> None:
    check_index_range("batches", torch.tensor([[0, 4]]), 5, "[0, 5)")
    with pytest.raises(ValueError, match=r"^batches must lie in \[0, 5\), got 5$"):
        check_index_range("batches", torch.tensor([[0, 5]]), 5, "[0, 5)")


def test_distinct() -> None:
    check_distinct("candidates", torch.tensor([3, 1, 2]))
    check_distinct("candidates", torch.tensor([], dtype=torch.int64))
    with pytest.raises(ValueError, match=r"^candidates must not hold duplicates, got 7 more than once$"):
        check_distinct("candidates", torch.tensor([7, 1, 7]))


@pytest.mark.parametrize("labels", [torch.tensor([3, 2**64 - 1], dtype=torch.uint64), [3, 2**64 - 1]])
def test_labels_that_int64_does_not_hold_are_named_as_they_are(labels: object) -> None:
    text = r"^y must hold integers of 64 bits with a sign, got 18446744073709551615$"
    with pytest.raises(ValueError, match=text):
        as_labels("y", labels, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_dtype_are_accepted(dtype: torch.dtype) -> None:
    labels = as_labels("targets", torch.tensor([1, 0], dtype=dtype), torch.device("cpu"))
    assert labels.dtype == torch.int64
    assert labels.tolist() == [1, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
def test_labels_of_another_dtype_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=rf"^targets must hold integers, got {dtype}$"):
        as_labels("targets", torch.zeros(2, dtype=dtype), torch.device("cpu"))


@pytest.mark.parametrize("empty", [[], torch.tensor([]), np.array([]), np.array([], object), torch.ones(0).bool()])
def test_an_empty_vector_may_have_any_dtype(empty: object) -> None:
    labels = as_labels("exclude", empty, torch.device("cpu"), rows=True)
    assert (labels.dtype, tuple(labels.shape)) == (torch.int64, (0,))


def test_arrays_of_objects_count_as_lists() -> None:
    assert as_labels("targets", np.array([1, 0], object), torch.device("cpu")).tolist() == [1, 0]
    with pytest.raises(TypeError, match=r"^targets must hold integers, got a list with NoneType$"):
        as_labels("targets", np.array([1, None], object), torch.device("cpu"))


@pytest.mark.parametrize("value", [True, np.True_])
def test_flag(value: object) -> None:
    assert check_flag("progress", value) is True
    assert check_flag("progress", not value) is False


@pytest.mark.parametrize("value", [1, "no", None, np.int64(1), torch.tensor(True)])
def test_not_a_flag(value: object) -> None:
    with pytest.raises(TypeError, match=rf"^progress must be True or False, got {type(value).__name__}$"):
        check_flag("progress", value)


def test_labels_of_another_type_or_device_are_refused() -> None:
    with pytest.raises(TypeError, match=r"^targets must be a torch\.Tensor or a NumPy array, got set$"):
        as_labels("targets", {1}, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^targets must be on cpu, got meta$"):
        as_labels("targets", torch.zeros(2, dtype=torch.int64, device="meta"), torch.device("cpu"))
