"""An approximate inverse of the Hessian of a softmax regression, with one block for each class.

The block of class k is H_k = prior_precision I + sum_n q_nk x_n x_n^T with the curvature q_nk = t_n p_nk (1 - p_nk). A
row has most of its curvature in its two likeliest classes. So

    M_k = S + sum over rows with k among these two of (q_nk - r_n) x_n x_n^T,
    S   = prior_precision I + sum_n r_n x_n x_n^T,

where r_n is the mean curvature of row n in all other classes. S is shared by all classes: one factor, and one product
per gradient. The sum over rows is cut to the m rows with the most curvature. By Woodbury's formula, a class then needs
m vectors:

    M_k^-1 = S^-1 - B_k^T B_k,    B_k = L_k^-1 A_k S^-1,    L_k L_k^T = I + A_k S^-1 A_k^T,

where A_k has the rows sqrt(q_nk - r_n) x_n, and L_k is a Cholesky factor.

Blocks between two classes are left out. With S alone, L-BFGS takes 1.5 to 2.5 times as many passes over the feature
sets of ``lapal_ext.study``.

Source: ours. S is the shared covariance of Huseljic et al., arXiv 2210.06112, with another weight.
"""

import math

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.posterior.softmax_fit.objective import Objective

_ROWS_OF_SHARED = 8  # times D: so many rows, evenly spaced, estimate S
_SHARE = 0.7  # of the average number of rows of a class, 2 N / C
_MOST_ROWS = 192  # of a class
_RESOLVED = 0.1  # over eps: the largest condition of M whose inverse is resolved


class ClassCurvature:
    """M^-1 G for gradients G [C, D].

    Attributes:
        usable: whether M is positive definite to working accuracy.
    """

    usable: bool
    _inverse: Tensor  # of S, [D, D]
    _vectors: Tensor | None  # B, [C, m, D]

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

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
    ) -> None:
        """Set M to the curvature of the probabilities."""
        curvature = self._curvature(probabilities)
        n_classes = len(curvature)
        largest, classes = curvature.topk(2, dim=0)  # [2, N]
        others = ((curvature.sum(0) - largest.sum(0)) / max(n_classes - 2, 1)).clamp_(min=0.0)
        condition = self._set_shared(others)
        if not self.usable:
            return
        x = self._objective.features
        most = _most_rows(len(x), n_classes)
        rows, weights = _rows_of_classes(classes, (largest - others).clamp_(min=0.0), n_classes, most)
        used, place = rows.flatten().unique(return_inverse=True)  # a row may be in two classes
        some = x[used]
        solved = ops.inner_products.unchecked(some, self._inverse)
        scale = weights.sqrt()[:, :, None]
        vectors = solved[place].view(*rows.shape, -1).mul_(scale)
        kernel = vectors @ some[place].view(*rows.shape, -1).mul_(scale).mT
        kernel.diagonal(dim1=1, dim2=2).add_(1.0)
        factor, info = torch.linalg.cholesky_ex(kernel)
        self._vectors = torch.linalg.solve_triangular(factor, vectors, upper=False)
        condition *= float(kernel.diagonal(dim1=1, dim2=2).amax())
        self.usable = not bool(info.any()) and condition <= _RESOLVED / torch.finfo(x.dtype).eps

    def solve(
        self,
        gradients: Tensor,  # [G, C, D]
    ) -> Tensor:  # [G, C, D]
        """M^-1 times gradients, class by class, less their mean over the classes."""
        result = ops.inner_products.unchecked(gradients.flatten(0, 1), self._inverse).view_as(gradients)
        if self._vectors is not None:
            along = gradients.movedim(0, 1) @ self._vectors.mT  # [C, G, m]
            result -= (along @ self._vectors).movedim(1, 0)
        return result.sub_(result.mean(1, keepdim=True))

    def _curvature(self, probabilities: Tensor) -> Tensor:
        return probabilities.mul(1.0 - probabilities).mul_(self._objective.trust)

    def _set_shared(
        self,
        weights: Tensor,  # [N]
    ) -> float:
        """Set S, and return its condition, as the diagonal of its factor tells it."""
        x = self._objective.features
        step = max(1, len(x) // (_ROWS_OF_SHARED * x.shape[1]))
        some = x[::step]
        prior = self._objective.prior_precision * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        matrix = ops.rank_n_update.unchecked(prior, some, weights[::step] * (len(x) / len(some)), None)
        factor, info = torch.linalg.cholesky_ex(matrix)
        condition = float(factor.diagonal().max() / factor.diagonal().min()) ** 2
        self.usable = int(info) == 0 and condition <= _RESOLVED / torch.finfo(x.dtype).eps
        if self.usable:
            self._inverse = torch.cholesky_inverse(factor)
        return condition


def _most_rows(n_rows: int, n_classes: int) -> int:
    """m. With sqrt(N) all classes together cost less than a pass; with more than a share, most places stay empty."""
    return min(math.isqrt(n_rows) + 1, math.ceil(_SHARE * 2 * n_rows / n_classes), _MOST_ROWS)


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
