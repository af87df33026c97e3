"""An approximate inverse of the Hessian of a softmax regression, with one block for each class.

The block of class k is H_k = prior_precision I + sum_n q_nk x_n x_n^T with the curvature q_nk = t_n p_nk (1 - p_nk).
Blocks between two classes are left out.

With few classes and features for the rows, every block is a matrix [D, D]. Its sum has the m rows with the most
curvature in class k, and what the other rows add up to, c_k, is spread like the curvature of all classes together:

    M_k = prior_precision I + sum over the m rows of q_nk x_n x_n^T + c_k R,
    R   = sum_n r_n x_n x_n^T,    r_n = sum_k q_nk, scaled to a sum of one.

With more, that would take more time than the passes that it saves, or too much memory. A row has most of its curvature
in its two likeliest classes. So

    M_k = S + sum over rows with k among these two of (q_nk - r_n) x_n x_n^T,
    S   = prior_precision I + sum_n r_n x_n x_n^T,

where r_n is the mean curvature of row n in all other classes. S is shared by all classes: one factor, and one product
per gradient. The sum over rows is cut to the m rows with the most curvature. By Woodbury's formula, a class then needs
m vectors:

    M_k^-1 = S^-1 - B_k^T B_k,    B_k = L_k^-1 A_k S^-1,    L_k L_k^T = I + A_k S^-1 A_k^T,

where A_k has the rows sqrt(q_nk - r_n) x_n, and L_k is a Cholesky factor.

Source: ours. S is the shared covariance of Huseljic et al., arXiv 2210.06112, with another weight.
"""

import math

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.posterior.softmax_fit.objective import Objective
from lapal_ext.tiles import row_tiles

_PASSES = 16  # of a fit, which the blocks as matrices may cost in any case
_MEMORY = 2.0  # of these blocks, in sizes of the features
_IDLE = 20  # classes: products with few classes are slow, so a pass takes as long as a fast one with so many more
_SLOWER = 3.0  # by which factors and inverses are slower than products
_ROWS_OF_SHARED = 8  # times D: so many rows, evenly spaced, estimate S
_ROWS_OF_OTHERS = 2  # times D: so many estimate R
_SHARE = 0.7  # of the average number of rows of a class, 2 N / C
_MOST_ROWS = 192  # of a class whose block is not a matrix
_RESOLVED = 0.1  # over eps: the largest condition of M whose inverse is resolved


class ClassCurvature:
    """M^-1 G for gradients G [C, D], in one dtype, which may be wider than that of the features.

    Attributes:
        usable: whether M is positive definite to working accuracy.
    """

    usable: bool
    _inverse: Tensor  # of S, [D, D], or of all M_k, [C, D, D]
    _vectors: Tensor | None  # B, [C, m, D]

    def __init__(self, objective: Objective, dtype: torch.dtype) -> None:
        self._objective = objective
        self._dtype = dtype

    def share(
        self,
        probabilities: Tensor,  # [C, N]
    ) -> None:
        """Set M to S with the mean curvature of all classes, which is exact where all classes are equally likely."""
        curvature = self._curvature(probabilities)
        self._set_shared(curvature.sum(0) / len(curvature))
        self._vectors = None

    def measure(
        self,
        probabilities: Tensor,  # [C, N]
        passes: int,
    ) -> None:
        """Set M to the curvature of the probabilities. A fit that has taken many passes may take many more."""
        curvature = self._curvature(probabilities)
        n_classes, n_rows = curvature.shape
        n_features = self._objective.features.shape[1]
        is_small = n_classes * n_features <= _MEMORY * n_rows
        if is_small and _passes_of_blocks(n_rows, n_features, n_classes) <= max(passes, _PASSES):
            self._set_blocks(curvature)
        else:
            self._set_shared_and_rows(curvature)

    def solve(
        self,
        gradients: Tensor,  # [G, C, D]
    ) -> Tensor:  # [G, C, D]
        """M^-1 times gradients, class by class, less their mean over the classes."""
        if self._inverse.dim() == 3:
            result = (gradients.movedim(1, 0) @ self._inverse).movedim(0, 1)
        else:
            result = ops.inner_products.unchecked(gradients.flatten(0, 1), self._inverse).view_as(gradients)
        if self._vectors is not None:
            along = gradients.movedim(0, 1) @ self._vectors.mT  # [C, G, m]
            result -= (along @ self._vectors).movedim(1, 0)
        return result.sub_(result.mean(1, keepdim=True))

    def _curvature(self, probabilities: Tensor) -> Tensor:
        return probabilities.mul(1.0 - probabilities).mul_(self._objective.trust)

    def _set_blocks(
        self,
        curvature: Tensor,  # [C, N]
    ) -> None:
        x, prior = self._objective.features, self._prior()
        largest, rows = curvature.topk(_rows_of_a_class(*curvature.T.shape), dim=1)  # [C, m]
        others = (curvature.sum(1) - largest.sum(1)).clamp_(min=0.0)  # c, [C]
        some, weights = self._evenly_spaced(curvature.sum(0), _ROWS_OF_OTHERS)
        weights /= weights.sum().clamp_(min=torch.finfo(self._dtype).tiny)  # zero where no row has any curvature
        spread = ops.rank_n_update.unchecked(torch.zeros_like(prior), some, weights, None)
        inverses = prior.new_empty(len(curvature), *prior.shape)
        for k in range(len(curvature)):
            block = prior + others[k] * spread
            for tile in row_tiles(rows.shape[1]):
                of_class = x[rows[k, tile]].to(self._dtype)
                block = ops.rank_n_update.unchecked(block, of_class, largest[k, tile], None)
            self._invert(block, out=inverses[k])
            if not self.usable:
                return
        self._inverse, self._vectors = inverses, None

    def _set_shared_and_rows(
        self,
        curvature: Tensor,  # [C, N]
    ) -> None:
        n_classes, n_rows = curvature.shape
        largest, classes = curvature.topk(2, dim=0)  # [2, N]
        others = ((curvature.sum(0) - largest.sum(0)) / max(n_classes - 2, 1)).clamp_(min=0.0)
        condition = self._set_shared(others)
        if not self.usable:
            return
        more = (largest - others).clamp_(min=0.0)
        rows, weights = _rows_of_classes(classes, more, n_classes, _most_rows(n_rows, n_classes))
        used, place = rows.flatten().unique(return_inverse=True)  # a row may be in two classes
        some = self._objective.features[used].to(self._dtype)
        solved = ops.inner_products.unchecked(some, self._inverse)
        scale = weights.sqrt()[:, :, None]
        vectors = solved[place].view(*rows.shape, -1).mul_(scale)
        kernel = vectors @ some[place].view(*rows.shape, -1).mul_(scale).mT
        kernel.diagonal(dim1=1, dim2=2).add_(1.0)
        factor, info = torch.linalg.cholesky_ex(kernel)
        self._vectors = torch.linalg.solve_triangular(factor, vectors, upper=False)
        condition *= float(kernel.diagonal(dim1=1, dim2=2).amax())
        self.usable = not bool(info.any()) and self._is_resolved(condition)

    def _set_shared(
        self,
        weights: Tensor,  # [N]
    ) -> float:
        """Set S, and return its condition."""
        some, weights_of_some = self._evenly_spaced(weights, _ROWS_OF_SHARED)
        prior = self._prior()
        self._inverse = torch.empty_like(prior)
        return self._invert(ops.rank_n_update.unchecked(prior, some, weights_of_some, None), out=self._inverse)

    def _prior(self) -> Tensor:  # [D, D]
        x = self._objective.features
        return self._objective.prior_precision * torch.eye(x.shape[1], dtype=self._dtype, device=x.device)

    def _evenly_spaced(
        self,
        weights: Tensor,  # [N]
        most: int,
    ) -> tuple[Tensor, Tensor]:  # [n, D], [n]
        """About ``most`` times D rows, at equal distances, with weights that are as large together as all."""
        x = self._objective.features
        step = max(1, len(x) // (most * x.shape[1]))
        some = x[::step].to(self._dtype)
        return some, weights[::step] * (len(x) / len(some))

    def _invert(
        self,
        matrix: Tensor,  # [D, D]
        out: Tensor,  # [D, D]
    ) -> float:
        """Write the inverse, if it is resolved, and return the condition, as the diagonal of the factor tells it."""
        factor, info = torch.linalg.cholesky_ex(matrix)
        condition = float(factor.diagonal().max() / factor.diagonal().min()) ** 2
        self.usable = int(info) == 0 and self._is_resolved(condition)
        if self.usable:
            torch.cholesky_inverse(factor, out=out)
        return condition

    def _is_resolved(self, condition: float) -> bool:
        return condition <= _RESOLVED / torch.finfo(self._dtype).eps


def _passes_of_blocks(n_rows: int, n_features: int, n_classes: int) -> float:
    """How many passes take as long as making the blocks as matrices. A pass is two products with all rows."""
    one = n_features**2 * (_SLOWER * n_features + _rows_of_a_class(n_rows, n_classes))
    return n_classes * one / (4.0 * n_rows * n_features * (n_classes + _IDLE))


def _rows_of_a_class(n_rows: int, n_classes: int) -> int:
    """m. Most rows beyond these would have hardly any curvature in the class."""
    return min(n_rows, math.ceil(_SHARE * 2 * n_rows / n_classes))


def _most_rows(n_rows: int, n_classes: int) -> int:
    """m of a class whose block is not a matrix. With sqrt(N), all classes together cost less than a pass."""
    return min(math.isqrt(n_rows) + 1, _rows_of_a_class(n_rows, n_classes), _MOST_ROWS)


def _rows_of_classes(
    classes: Tensor,  # [2, N] int64
    weights: Tensor,  # [2, N]
    n_classes: int,
    most: int,
) -> tuple[Tensor, Tensor]:  # [C, m] int64, [C, m]
    """The rows with the largest weights of each class, at most ``most``; places without a row have weight zero."""
    n_rows, pairs, sizes = classes.shape[1], classes.flatten(), weights.flatten()
    order = sizes.argsort(descending=True, stable=True)
    order = order[pairs[order].argsort(stable=True)]  # by class, and the largest weight first
    counts = torch.bincount(pairs, minlength=n_classes)
    place = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    order, place = order[place < most], place[place < most]
    rows = classes.new_zeros(n_classes, min(most, int(counts.max())))
    chosen = weights.new_zeros(rows.shape)
    rows[pairs[order], place] = order % n_rows
    chosen[pairs[order], place] = sizes[order]
    return rows, chosen
