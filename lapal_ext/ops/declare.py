"""One declaration per op: its typed reference is the schema, the definition and the fallback for every device.

``define`` turns the reference into a custom op, writes its fake from the shapes it returns, and wraps it with the
checks that those shapes imply, so that no signature is ever stated twice. C++ only adds kernels
(``csrc/cpu/ops/<op>.cpp``, ``csrc/cuda/ops/<op>.cu``), and the dispatcher calls them where they exist.
"""

import contextlib
import functools
import importlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor

from lapal_ext.entries import entry
from lapal_ext.validation.scalars import check_choice, check_number
from lapal_ext.validation.tensors import ShapeSpec, check_index_range, check_tensors

NAMESPACE = "lapal_ext"
_COMPILER = "torch._dynamo"
# Within it, a call goes to the kernel itself. Private, and looked up: without it, calls only take longer.
_BELOW_AUTOGRAD = getattr(torch._C, "_AutoDispatchBelowADInplaceOrView", contextlib.nullcontext)
_RETURN_DTYPES = {"float64": torch.float64, "int64": torch.int64, "bool": torch.bool}

P = ParamSpec("P")
R = TypeVar("R")


OPS: dict[str, "Op[Any, Any]"] = {}


class Op(Generic[P, R]):
    """A checked call into the dispatcher. Every op is listed in ``OPS``.

    Attributes:
        name: the op is ``torch.ops.lapal_ext.<name>``.
        reference: the plain torch function, also where a kernel is loaded.
        shapes: the specification of every tensor argument.
    """

    def __init__(
        self,
        reference: Callable[P, R],
        shapes: Mapping[str, str],
        returns: Iterable[str],
        mutates: Iterable[str],
        choices: Mapping[str, tuple[str, ...]],
        nonnegative: Iterable[str],
        indices: Mapping[str, str],
        check: Callable[..., None] | None,
    ) -> None:
        functools.update_wrapper(self, reference)
        self.name = reference.__name__
        self.reference = reference
        self.shapes = {name: ShapeSpec.parse(text) for name, text in shapes.items()}
        self._returns = [ShapeSpec.parse(text) for text in returns]
        self._mutates = tuple(mutates)
        self._choices = choices
        self._nonnegative = tuple(nonnegative)
        self._indices = indices
        self._check_together = check
        self._checked_together = tuple(inspect.signature(check).parameters) if check else ()
        self._signature = inspect.signature(reference)
        parameters = self._signature.parameters.values()
        self._names = {parameter.name: None for parameter in parameters}  # in order
        self._required = {parameter.name for parameter in parameters if parameter.default is parameter.empty}
        self._like = next(name for name, spec in self.shapes.items() if spec.kind == "compute")
        definition = torch.library.custom_op(f"{NAMESPACE}::{self.name}", mutates_args=self._mutates)(reference)
        definition.register_fake(self._fake)
        # What a call runs, see ``replace_ops``.
        self._implementation: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), self.name).default
        self._overload = self._implementation
        self._called = False
        self._has_kernel = False  # known from the first call on, when kernels have been loaded
        self._outside_autocast = entry(self._dispatch)
        OPS[self.name] = self

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Check the arguments, then let the dispatcher choose the kernel."""
        # While torch.compile traces, the fake and the kernels' own checks replace these. What it compiles runs outside
        # of autocast.
        if torch.compiler.is_compiling():
            return self._dispatch(*args, **kwargs)
        self._check(self._bind(args, kwargs))
        return self._outside_autocast(*args, **kwargs)

    def unchecked(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the op without checks, on arguments that are valid by construction.

        The checks take 15 to 25 us, and several times as long after a pass over a pool has evicted them from the
        caches: about as long as a short pick or update. Kernels still check what protects memory.

        Where no gradient is recorded, it also leaves out torch's own layers for a custom op, which are written in
        Python and take as long as a small kernel. The version counters of what it changes in place do not move.
        """
        is_direct = self._has_kernel and self._implementation is self._overload
        if not is_direct or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._dispatch(*args, **kwargs)
        with _BELOW_AUTOGRAD():
            result: R = self._overload(*args, **kwargs)
        return result

    def _dispatch(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if not self._called and not torch.compiler.is_compiling():
            self._has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{self.name}", "CPU")
            if not self._has_kernel:
                _import_compiler()
            self._called = True
        result: R = self._implementation(*args, **kwargs)
        return result

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments by name. ``inspect`` is slow, so it is only called to raise its error."""
        values = dict(zip(self._names, args, strict=False)) | kwargs
        if self._required <= values.keys() <= self._names.keys() and len(values) == len(args) + len(kwargs):
            return values
        return self._signature.bind(*args, **kwargs).arguments

    def _check(self, values: dict[str, Any]) -> None:
        given = {name: spec for name, spec in self.shapes.items() if name in values}
        sizes = check_tensors(given, values)
        for name, choices in self._choices.items():
            check_choice(name, values.get(name, self._signature.parameters[name].default), choices)
        for name in self._nonnegative:
            if name in values:
                check_number(name, values[name], at_least=0.0)
        for name, letter in self._indices.items():
            # Only on the CPU: on a GPU the check would synchronise, and kernels return NaN for an index out of range.
            if (index := values.get(name)) is not None and index.device.type == "cpu":
                check_index_range(name, index, sizes[letter], f"[0, {sizes[letter]})")
        # The backward of an op that changes buffers in place would be silently wrong, whichever input requires grad.
        for name in self.shapes if self._mutates else ():
            value = values.get(name)
            if value is not None and value.requires_grad:
                raise ValueError(f"{name} must not require grad: {self.name} changes buffers in place")
        if self._check_together is not None:
            self._check_together(**{name: values[name] for name in self._checked_together})

    def _fake(self, *args: Any, **kwargs: Any) -> Any:
        values = self._signature.bind(*args, **kwargs).arguments
        sizes: dict[str, int] = {}
        for name, spec in self.shapes.items():
            if values.get(name) is not None:
                for dim, size in zip(spec.dims, values[name].shape, strict=True):
                    sizes.setdefault(dim, size)
        like: Tensor = values[self._like]
        results = tuple(
            like.new_empty([sizes[dim] for dim in spec.dims], dtype=_RETURN_DTYPES.get(spec.kind, like.dtype))
            for spec in self._returns
        )
        return results if len(results) > 1 else results[0]


def _import_compiler() -> None:
    """Import torch._dynamo in a new thread, before torch does so at the first call of a reference.

    The import leaves a reference cycle through all frames of its thread, which keeps their tensors and process groups
    alive until the next garbage collection. Ops with a CPU kernel do not import it.
    """
    if _COMPILER not in sys.modules:
        thread = threading.Thread(target=importlib.import_module, args=(_COMPILER,))
        thread.start()
        thread.join()


@contextlib.contextmanager
def replace_ops(implementations: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Replace some ops by other functions within the body, in all threads; for tests and benchmarks.

    Args:
        implementations: functions by the name of the op; each has the signature of its op.
    """
    before = {name: OPS[name]._implementation for name in implementations}
    try:
        for name, implementation in implementations.items():
            OPS[name]._implementation = implementation
        yield
    finally:
        for name, implementation in before.items():
            OPS[name]._implementation = implementation


def use_references() -> contextlib.AbstractContextManager[None]:
    """Run the torch reference of every op in place of its kernel within the body, in all threads.

    The references are called directly. That is faster than ``LAPAL_EXT_BACKEND=reference``, where torch's wrapper of
    an op written in Python takes some 50 us per call.
    """
    return replace_ops({name: op.reference for name, op in OPS.items()})


def define(
    *,
    shapes: Mapping[str, str],
    returns: Iterable[str],
    mutates: Iterable[str] = (),
    choices: Mapping[str, tuple[str, ...]] | None = None,
    nonnegative: Iterable[str] = (),
    indices: Mapping[str, str] | None = None,
    check: Callable[..., None] | None = None,
) -> Callable[[Callable[P, R]], Op[P, R]]:
    """Declare an op on its reference.

    Args:
        shapes: a specification (``"int64 [M, b]"``, see ``validation.tensors``) per tensor argument.
        returns: one per result; results are contiguous, with the dtype of the first ``compute`` argument by default.
        mutates: arguments that are changed in place; such an op returns fresh tensors only.
        choices: allowed values per string argument.
        nonnegative: arguments that must be finite numbers, at least zero.
        indices: per argument of indices, the letter of the size that all of them must be below.
        check: raises if arguments are inconsistent; it is called with the arguments that its parameters name.
    """
    return lambda reference: Op(reference, shapes, returns, mutates, choices or {}, nonnegative, indices or {}, check)
