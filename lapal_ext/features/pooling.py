"""One row for each input from the tokens of a sequence or the positions of an image."""

from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext.validation.tensors import shape_text

POOLS = ("last", "first", "mean")
"""The last or the first token that the attention mask keeps, or the mean of those."""


class Pooling(NamedTuple):
    """How the rows of one batch are made of what a layer gives."""

    kind: str  # one of ``POOLS``
    rows: int  # of the batch
    mask: Tensor | None  # [rows, T], 0 where there is no token

    def of(self, value: Tensor, *, channels_first: bool | None) -> Tensor | None:  # [rows, C]
        """Rows of what a layer gives for each token or position; None of what has none."""
        if value.dim() < 3:
            return None
        try:
            return as_rows(value, "the output", self.rows, self.kind, self.mask, channels_first=channels_first)
        except ValueError:
            return None


def as_rows(
    value: Tensor,
    what: str,
    rows: int,
    pool: str | None,
    mask: Tensor | None,  # [rows, T], 0 where there is no token
    *,
    channels_first: bool | None,
) -> Tensor:  # [rows, D]
    """Return [rows, D] of a value of this shape, of [rows, T, D] with ``pool``, or [rows, D, positions...].

    Args:
        value: what was caught; dimensions of size one are dropped.
        what: its name in messages.
        rows: the number of inputs.
        pool: how one token is made of all, or None.
        mask: of the tokens; by default all are kept. Positions of an image have none.
        channels_first: whether D is the second dimension rather than the last one; None if it is not known.

    Raises:
        ValueError: the value has another shape, or ``pool`` does not apply to it.
    """
    if value.dim() == 2 and pool is not None:
        raise ValueError(f"pool must be None, since {what} has one row for each input already, got {pool!r}")
    if value.dim() > 2 and len(value) == rows:
        last = channels_first is not True and all(size == 1 for size in value.shape[1:-1])
        second = channels_first is not False and all(size == 1 for size in value.shape[2:])
        if last or second:
            value = value.flatten(1)
        elif pool is not None and (value.dim() == 3 or channels_first is not None):
            value = value.flatten(2).movedim(1, -1) if channels_first else value.flatten(1, -2)
            value = _pooled(value, pool, None if channels_first else mask, what)
    if value.dim() != 2 or len(value) != rows or value.shape[1] == 0:
        tokens = pool is None and len(value) == rows and (value.dim() == 3 or channels_first is not None)
        how = "pass pool='last', 'first' or 'mean', " if tokens and value.dim() > 2 else ""
        raise ValueError(
            f"{what} must have shape ({rows}, D), one row for each input, got {shape_text(value.shape)}: {how}choose "
            "another layer, or put one that pools or flattens into the model"
        )
    return value


def _pooled(value: Tensor, pool: str, mask: Tensor | None, what: str) -> Tensor:  # [rows, T, D] -> [rows, D]
    rows, tokens, _ = value.shape
    if mask is None:
        keep = torch.ones(rows, tokens, dtype=torch.bool, device=value.device)
    elif mask.shape != (rows, tokens):
        raise ValueError(
            f"attention_mask must have shape ({rows}, {tokens}), one value for each token of {what}, got "
            f"{shape_text(mask.shape)}: pool the features in the model instead"
        )
    else:
        keep = mask.to(value.device) != 0
    if not bool(keep.any(1).all()):
        row = int(keep.any(1).logical_not().nonzero()[0])
        raise ValueError(f"attention_mask must keep a token of each input, got none in row {row} of a batch")
    if pool == "mean":
        return value.masked_fill(~keep[..., None], 0.0).sum(1) / keep.sum(1, keepdim=True)
    places = torch.arange(tokens, device=value.device)
    place = torch.where(keep, places, -1).amax(1) if pool == "last" else torch.where(keep, places, tokens).amin(1)
    return value[torch.arange(rows, device=value.device), place]
