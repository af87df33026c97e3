"""A subclass of tensors with integers inside, as those of torchao are."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from typing_extensions import Self


class Eighths(Tensor):
    """A tensor of integers and a scale, which computes like its product."""

    codes: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor) -> Self:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: Tensor) -> None:
        self.codes = codes

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes"], None

    @classmethod
    def __tensor_unflatten__(cls, inner: Any, *_: Any) -> "Eighths":
        return cls(inner["codes"])

    def dequantize(self) -> Tensor:  # type: ignore[override]
        return self.codes.float() / 8

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            return return_and_correct_aliasing(func, args, kwargs or {}, cls(args[0].codes))
        if func in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default, torch.ops.aten.t.default):
            plain = [part.dequantize() if isinstance(part, cls) else part for part in args]
            return func(*plain, **(kwargs or {}))
        raise NotImplementedError(func)
