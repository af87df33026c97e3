"""The same values in different memory layouts, between values that a kernel must neither read nor change."""

from collections.abc import Callable

import torch
from torch import Tensor

_READ_ME_AND_FAIL = {torch.int64: -(10**12), torch.bool: True}


def _filler(dtype: torch.dtype) -> float:
    """The value between and around the others: NaN if the dtype has one, so that a read of it shows in the result."""
    return _READ_ME_AND_FAIL.get(dtype, float("nan"))


def contiguous(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def transposed(tensor: Tensor) -> Tensor:
    """Last two dimensions swapped in memory: class-major for logits [N, C]. A vector gets stride three."""
    if tensor.dim() >= 2:
        return tensor.mT.clone(memory_format=torch.contiguous_format).mT
    if tensor.dim() == 0:
        return tensor.clone()
    spread = tensor.new_full((3 * tensor.numel(),), _filler(tensor.dtype))[::3]
    return spread.copy_(tensor)


def sliced(tensor: Tensor) -> Tensor:
    """Inside a larger buffer: storage offset, row padding."""
    buffer = tensor.new_full([size + 3 for size in tensor.shape] or [3], _filler(tensor.dtype))
    if tensor.dim() == 0:
        return buffer[1].copy_(tensor)
    for dim, size in enumerate(tensor.shape):
        buffer = buffer.narrow(dim, 1, size)
    return buffer.copy_(tensor)


def every_other(tensor: Tensor) -> Tensor:
    """No dimension has stride one."""
    if tensor.dim() == 0:
        return tensor.clone()
    return tensor.new_full((*tensor.shape, 2), _filler(tensor.dtype))[..., 1].copy_(tensor)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": contiguous,
    "transposed": transposed,
    "sliced": sliced,
    "every_other": every_other,
}


def expanded(tensor: Tensor, dim: int) -> Tensor:
    """The first entry of a dimension, repeated with stride zero; its values are not those of ``tensor``."""
    return tensor.narrow(dim, 0, 1).expand_as(tensor)


def bytes_of(tensor: Tensor) -> Tensor:
    """The whole storage of a tensor as bytes, in which NaN equals NaN."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage()).clone()


def bytes_around(tensor: Tensor) -> Tensor:
    """The bytes in the storage of a tensor that are outside of its elements."""
    whole = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
    own = torch.arange(whole.numel()).as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    around = torch.ones(whole.numel(), dtype=torch.bool)
    around[own.flatten()] = False
    return whole[around.to(tensor.device)].view(torch.uint8)
