"""The rows that a coverage is summed over, how much each counts, and the directions of rows."""

import torch
from torch import Tensor

from lapal_ext.acquisition.spec import Setting
from lapal_ext.pool.pool import Pool
from lapal_ext.utilities import UTILITIES
from lapal_ext.validation.arrays import Array, Rows
from lapal_ext.validation.scalars import check_choice, check_integer
from lapal_ext.validation.tensors import as_dense, check_dense, check_finite, shape_text

MOST_REFERENCES = 10_000  # of a pool with more rows a sample of this size is the default
"""Coverage of N rows by E references takes O(N E D): a second per 10,000 rows and references at D = 384."""

References = int | Rows | None
Uncertainty = str | Array | None


def check_references(references: object, pool: Pool) -> int | Tensor | None:
    """Return a number of rows, or row numbers int64 [E], or raise a typed error."""
    if references is None:
        return None
    if isinstance(references, str) or not hasattr(references, "__len__"):
        return check_integer("references", references, at_least=1)
    rows = pool.check_rows("references", references)
    if len(rows) == 0:
        raise ValueError("references must hold at least one row, got none")
    return rows


def check_uncertainty(uncertainty: Uncertainty, pool: Pool) -> str | Tensor | None:
    """Return the name of a utility, or one number per row in this process, or raise a typed error."""
    if uncertainty is None:
        return None
    if isinstance(uncertainty, str):
        check_choice("uncertainty", uncertainty, UTILITIES)
        return uncertainty
    values = check_dense("uncertainty", as_dense("uncertainty", uncertainty))
    if not values.dtype.is_floating_point:
        raise TypeError(f"uncertainty must be the name of a utility or floating point numbers, got {values.dtype}")
    if values.shape != (pool.rows_here,):
        raise ValueError(
            f"uncertainty must have shape ({pool.rows_here},), one number per row of pool, got "
            f"{shape_text(values.shape)}"
        )
    if values.device != pool.storage.device:
        raise ValueError(f"uncertainty must be on {pool.storage.device} like pool, got {values.device}")
    check_finite("uncertainty", values)
    if bool((values < 0).any()):
        raise ValueError(f"uncertainty must be at least 0, got {float(values.min()):g}")
    return values.detach()


def sample_size(references: int | Tensor | None, rows: int) -> int | None:
    """Number of references that are drawn from so many rows; None if the references are not drawn."""
    if isinstance(references, Tensor):
        return None
    size = MOST_REFERENCES if references is None else references
    return size if size < rows else None


def reference_rows(setting: Setting) -> Tensor:  # [E] int64
    """Row numbers of the references in the whole pool: those given, all candidates, or a uniform sample of them."""
    pool, references = setting.pool, setting.references
    if isinstance(references, Tensor):
        return references
    size = sample_size(references, pool.shard.total)
    picks = torch.arange(pool.shard.total, device="cpu")
    if size is not None:
        order = torch.randperm(
            pool.shard.total, generator=torch.Generator(device="cpu").manual_seed(setting.seed), device="cpu"
        )
        picks = order[:size].sort().values
    return pool.to_rows(picks.to(pool.storage.device))


def is_every_row(rows: Tensor, pool: Pool) -> bool:
    """Whether rows of the whole pool are its candidates, all of them, in their order."""
    picks = torch.arange(pool.shard.total, device=rows.device)
    return len(rows) == len(picks) and torch.equal(rows, pool.to_rows(picks))


def directions(
    standardized: Tensor,  # [n, columns], of which the first D are features
    n_features: int,
) -> Tensor:  # [n, D + 1]
    """Vectors of length one. A row without a direction, zero, gets one of its own, at right angles to all others."""
    result = standardized.new_zeros(len(standardized), n_features + 1)
    features = result[:, :n_features]
    features.copy_(standardized[:, :n_features])
    largest = features.abs().amax(1, keepdim=True)  # squares of small numbers would vanish
    features /= torch.where(largest > 0, largest, 1.0)
    result[:, -1] = (largest[:, 0] == 0).to(result.dtype)
    return result.div_(result.norm(dim=1, keepdim=True))
