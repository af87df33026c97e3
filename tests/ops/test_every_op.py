"""What holds for every op, whatever it computes: schema, fake, compilation, autograd, checks."""

import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lapal_ext import ops
from lapal_ext.ops import OPS
from tests.budget import mutated_names, outcome
from tests.draws import Arguments, cast
from tests.layouts import LAYOUTS, bytes_of
from tests.native import NATIVE_OPS, require_native
from tests.ops.every_op import (
    ALL_NATIVE,
    assert_same,
    every_op,
    every_tensor,
    every_variant,
    overload,
)
from tests.ops.examples import EXAMPLES, example

# Files and declarations


def test_examples_and_native_list_name_existing_ops() -> None:
    assert EXAMPLES.keys() == OPS.keys()
    assert OPS.keys() >= ALL_NATIVE


@every_op
def test_has_a_module_and_a_test_file(name: str) -> None:
    module = importlib.import_module(f"lapal_ext.ops.{name}")
    assert getattr(module, name) is OPS[name] is getattr(ops, name)
    assert name in ops.__all__
    assert Path(__file__).with_name(f"test_{name}.py").is_file()


@every_op
def test_docstring_has_arguments_results_and_their_names(name: str) -> None:
    doc = inspect.getdoc(OPS[name].reference) or ""
    assert OPS[name].__doc__ == OPS[name].reference.__doc__
    described = doc.split("Args:\n")[1].split("Returns:\n")[0]
    for parameter in inspect.signature(OPS[name].reference).parameters:
        assert re.search(rf"^ +{parameter}: ", described, re.MULTILINE), f"{parameter} is not described"
    assert doc.split("Returns:\n")[1].strip()


@every_op
def test_every_tensor_argument_has_a_shape(name: str) -> None:
    tensors = {a.name for a in overload(name)._schema.arguments if "Tensor" in str(a.type)}
    assert OPS[name].shapes.keys() == tensors


@every_op
def test_schema_marks_what_is_mutated_and_returns_no_alias(name: str) -> None:
    schema = overload(name)._schema
    declared = re.search(r"mutates=\(([^)]*)\)", inspect.getsource(importlib.import_module(f"lapal_ext.ops.{name}")))
    wanted = re.findall(r"\w+", declared[1]) if declared else []
    assert [a.name for a in schema.arguments if a.is_write] == [a.name for a in schema.arguments if a.name in wanted]
    assert sorted(mutated_names(OPS[name])) == sorted(wanted)
    assert name.endswith("_") == bool(wanted)
    assert all(result.alias_info is None for result in schema.returns)


@every_op
def test_what_is_marked_as_mutated_does_change(name: str, device: str) -> None:
    args = cast(OPS[name], example(name), torch.float64, device=device)
    values = outcome(OPS[name], OPS[name], args).values
    for argument in mutated_names(OPS[name]):
        assert not torch.equal(values[argument], args[argument]), f"{argument} is marked, and never changed"


@pytest.mark.parametrize("name", sorted(ALL_NATIVE))
def test_native_kernel_exists(name: str, device: str) -> None:
    if name not in NATIVE_OPS[device]:
        pytest.skip(f"{name} needs no kernel on {device}")
    require_native(name, device)


# The dispatcher


@every_variant
def test_opcheck(name: str, variant: str, dtype: torch.dtype, device: str) -> None:
    args = cast(OPS[name], example(name, variant), dtype, device=device)
    torch.library.opcheck(overload(name), (), args)


@every_variant
def test_a_compiled_call_gives_the_same(name: str, variant: str, device: str) -> None:
    torch._dynamo.reset()
    args = cast(OPS[name], example(name, variant), torch.float32, device=device)
    op = OPS[name]

    def call(**kwargs: object) -> object:
        return op(**kwargs)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_same(outcome(compiled, OPS[name], args), outcome(OPS[name], OPS[name], args))


@every_variant
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_has_the_real_strides(name: str, variant: str, layout: str, dtype: torch.dtype, device: str) -> None:
    args = cast(OPS[name], example(name, variant), dtype, device=device)
    args = {k: LAYOUTS[layout](v) if isinstance(v, Tensor) else v for k, v in args.items()}
    with FakeTensorMode() as mode:
        fakes = overload(name)(**{k: mode.from_tensor(v) if isinstance(v, Tensor) else v for k, v in args.items()})
    reals = OPS[name](**args)
    fakes, reals = (x if isinstance(x, tuple) else (x,) for x in (fakes, reals))
    for fake, real in zip(fakes, reals, strict=True):
        assert (fake.shape, fake.dtype, fake.device) == (real.shape, real.dtype, real.device)
        assert fake.stride() == real.stride()
        assert real.storage_offset() == 0


@pytest.mark.parametrize(
    ("name", "argument"),
    [(n, a) for n in sorted(OPS) for a, spec in OPS[n].shapes.items() if spec.kind in {"compute", "storage"}],
)
def test_gradients_raise(name: str, argument: str, device: str) -> None:
    args = cast(OPS[name], example(name), torch.float32, device=device)
    args[argument].requires_grad_()
    if mutated_names(OPS[name]):
        with pytest.raises(ValueError, match=rf"\b{argument}\b.* must not require grad"):
            OPS[name](**args)
        return
    results = OPS[name](**args)
    first = results[0] if isinstance(results, tuple) else results
    with pytest.raises(RuntimeError, match=r"autograd|does not require grad|derivative|backward"):
        first.sum().backward()
    assert args[argument].grad is None


@every_variant
def test_a_call_without_checks_gives_the_same(name: str, variant: str, dtype: torch.dtype, device: str) -> None:
    op, args = OPS[name], cast(OPS[name], example(name, variant), dtype, device=device)
    op(**args | {k: v.clone() for k, v in args.items() if isinstance(v, Tensor)})  # from the first call on it is direct
    with torch.no_grad():
        assert_same(outcome(op.unchecked, op, args), outcome(op, op, args))


@pytest.mark.parametrize("name", [name for name in sorted(OPS) if not mutated_names(OPS[name])])
def test_a_call_without_checks_drops_no_gradient_in_silence(name: str, device: str) -> None:
    args = cast(OPS[name], example(name), torch.float32, device=device)
    OPS[name](**args)  # from the first call on it may be direct
    args[OPS[name]._like].requires_grad_()
    results = OPS[name].unchecked(**args)
    first = results[0] if isinstance(results, tuple) else results
    assert first.requires_grad
    with pytest.raises(RuntimeError, match=r"autograd|does not require grad|derivative|backward"):
        first.sum().backward()


@pytest.mark.parametrize("name", [name for name in sorted(OPS) if mutated_names(OPS[name])])
def test_a_call_counts_as_a_change_of_what_it_changes(name: str, device: str) -> None:
    args = cast(OPS[name], example(name), torch.float32, device=device)
    with torch.no_grad():
        for _ in range(2):
            before = {argument: args[argument]._version for argument in mutated_names(OPS[name])}
            OPS[name](**args)
            assert all(args[argument]._version > count for argument, count in before.items())


# Checks: every message holds the argument's name


def has_bytes(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type != "meta"


def assert_refused(name: str, args: Arguments, argument: str, error: type[Exception]) -> None:
    before = {k: bytes_of(v) for k, v in args.items() if has_bytes(v)}
    with pytest.raises(error, match=rf"\b{argument}\b") as caught:
        OPS[name](**args)
    assert type(caught.value) is error
    assert ", got " in str(caught.value)
    for other, was in before.items():
        assert torch.equal(bytes_of(args[other]), was), f"{other} was changed by a call that was refused"


@every_tensor
def test_wrong_number_of_dimensions(name: str, argument: str) -> None:
    args = cast(OPS[name], example(name), torch.float32)
    assert_refused(name, args | {argument: args[argument][None].contiguous()}, argument, ValueError)
    if args[argument].dim():
        assert_refused(name, args | {argument: args[argument].select(-1, 0).clone()}, argument, ValueError)


@every_tensor
def test_wrong_size(name: str, argument: str) -> None:
    args = cast(OPS[name], example(name), torch.float32)
    letters = [letter for spec in OPS[name].shapes.values() for letter in spec.dims]
    for dim, letter in enumerate(OPS[name].shapes[argument].dims):
        if letters.count(letter) > 1:
            longer = torch.cat([args[argument], args[argument].narrow(dim, 0, 1)], dim)
            assert_refused(name, args | {argument: longer}, argument, ValueError)
            assert_refused(name, args | {argument: args[argument].narrow(dim, 0, 1).clone()}, argument, ValueError)


@every_tensor
def test_kernels_refuse_wrong_sizes_without_the_checks_around_them(name: str, argument: str) -> None:
    require_native(name, "cpu")
    args = cast(OPS[name], example(name), torch.float32)
    if "kind" in args:
        args["kind"] = "gradient_norm"  # the only kind that reads the scale
    letters = [letter for spec in OPS[name].shapes.values() for letter in spec.dims]
    for dim, letter in enumerate(OPS[name].shapes[argument].dims):
        shorter = args[argument].narrow(dim, 0, 1).clone()
        if letters.count(letter) > 1 and shorter.shape != args[argument].shape:
            with pytest.raises(RuntimeError, match=rf"{name}\b.*must"):
                OPS[name].unchecked(**args | {argument: shorter})


@every_tensor
def test_wrong_dtype(name: str, argument: str) -> None:
    args = cast(OPS[name], example(name), torch.float32)
    kind = OPS[name].shapes[argument].kind
    wrong = {"int64": [torch.int32, torch.float32], "bool": [torch.uint8], "storage": [torch.int64]}
    for dtype in wrong.get(kind, [torch.int64, torch.float16, torch.complex64]):
        assert_refused(name, args | {argument: args[argument].to(dtype)}, argument, TypeError)
    if kind == "compute" and sum(spec.kind == "compute" for spec in OPS[name].shapes.values()) > 1:
        assert_refused(name, args | {argument: args[argument].double()}, argument, TypeError)


@every_tensor
def test_wrong_device(name: str, argument: str) -> None:
    args = cast(OPS[name], example(name), torch.float32)
    assert_refused(name, args | {argument: args[argument].to("meta")}, argument, ValueError)


@every_tensor
def test_not_a_dense_tensor(name: str, argument: str) -> None:
    args = cast(OPS[name], example(name), torch.float32)
    assert_refused(name, args | {argument: args[argument].tolist()}, argument, TypeError)
    assert_refused(name, args | {argument: args[argument].to_sparse()}, argument, TypeError)


@every_op
def test_wrong_choices_and_numbers(name: str) -> None:
    args = cast(OPS[name], example(name), torch.float32)
    for argument, value in args.items():
        if isinstance(value, str):
            for wrong in ("nonsense", "", value.upper(), None):
                assert_refused(name, args | {argument: wrong}, argument, ValueError)
        elif isinstance(value, float):
            for wrong in (-1e-9, float("nan"), float("inf")):
                assert_refused(name, args | {argument: wrong}, argument, ValueError)
            assert_refused(name, args | {argument: "1"}, argument, TypeError)


@every_op
def test_missing_required_arguments(name: str) -> None:
    args = example(name)
    for argument in overload(name)._schema.arguments:
        if "Optional" not in str(argument.type):
            without = {k: v for k, v in args.items() if k != argument.name}
            with pytest.raises(TypeError, match=argument.name):
                OPS[name](**without)
