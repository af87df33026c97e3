"""Standardised features: centred, scaled, and with a constant one appended if the layer has a bias.

Raw features [N, D] are what callers pass. The mean and the covariance of a posterior belong to standardised features.
"""

from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from lapal_ext.tiles import row_tiles
from lapal_ext.validation.tensors import check_overflow

COLUMNS: Literal["columns"] = "columns"
Standardize: TypeAlias = bool | Literal["columns"]
"""Whether features are centred and scaled: by one number for all columns (True), or each column by its own."""

_SAMPLED = 128  # rows from which ``uneven_columns`` judges; fewer than _JUDGED say nothing about a variance
_JUDGED = 8
_UNEVEN = 64.0  # eight times the scale of a usual column
_FEW = 8  # columns are few if there are so many times as many others
_SHOWN = 4  # columns that a warning lists
_IN_ORDER = 0.8  # rank correlation of the variances of principal components with their order; by chance below 0.5
_ORDERED = 20  # columns, of which fewer may be in order by chance
_RESOLVED = 8.0  # a deviation below so many eps of the mean is rounding


class Standardization(NamedTuple):
    """The map phi -> (phi - centre) scale, with a one appended if there is a bias; a view of a posterior's buffers."""

    centre: Tensor  # [D]
    scale: Tensor  # [] or [D]
    has_bias: bool

    @property
    def kind(self) -> Standardize:
        """The ``standardize`` of ``fit_standardization`` that gives such a centre and scale."""
        if self.scale.dim() == 1:
            return COLUMNS
        return float(self.scale) != 1.0 or bool(self.centre.any())

    def standardized(
        self,
        features: Tensor,  # [N, D] raw
        out: Tensor | None = None,  # [N, D] or [N, D + 1]
    ) -> Tensor:  # [N, D] or [N, D + 1]
        """Standardised features in the dtype of ``centre``; always a copy, in ``out`` if it is given."""
        result = out
        n_features = len(self.centre)
        if result is None:
            shape = (features.shape[0], n_features + self.has_bias)
            result = features.new_empty(shape, dtype=self.centre.dtype)
        columns = result[:, :n_features]
        if features.dtype == result.dtype:
            torch.sub(features.detach(), self.centre, out=columns)
        else:  # a difference of two dtypes would first copy the features to another tensor
            columns.copy_(features.detach()).sub_(self.centre)
        columns.mul_(self.scale)
        if self.has_bias:
            result[:, -1] = 1.0
        return result

    def raw(
        self,
        weights: Tensor,  # [K, D] or [K, D + 1], of standardised features
    ) -> tuple[Tensor, Tensor]:  # [K, D], [K]
        """Weights W and offsets o for raw features: W phi + o equals ``weights`` times the standardised phi.

        With them a product can read a pool of raw features, without a standardised copy.
        """
        raw_weights = weights[:, : len(self.centre)] * self.scale
        offsets = -(raw_weights @ self.centre)
        return raw_weights, offsets + weights[:, -1] if self.has_bias else offsets

    def products(
        self,
        rows: Tensor,  # [K, D] raw, in the dtype of ``centre``
    ) -> tuple[Tensor, Tensor]:  # [K, D], [K]
        """Weights W and offsets o for products with these rows, standardised: W phi + o for a raw phi.

        The same as ``raw(standardized(rows))`` up to rounding, in fewer calls: it is called once for every pick.
        """
        weights = (rows.detach() - self.centre) * self.scale.square()
        offsets = -(weights @ self.centre)
        return weights, offsets + 1.0 if self.has_bias else offsets

    def of_raw(
        self,
        weights: Tensor,  # [K, D]
        offsets: Tensor,  # [K]
    ) -> Tensor:  # [K, D] or [K, D + 1]
        """Inverse of ``raw``. Without a bias the offsets must be those of the centre alone."""
        columns = [weights / self.scale]
        if self.has_bias:
            columns.append((offsets + weights @ self.centre)[:, None])
        return torch.cat(columns, 1)


def fit_standardization(
    features: Tensor,  # [N, D] raw
    *,
    has_bias: bool,
    standardize: Standardize = True,
    weights: Tensor | None = None,  # [N]
) -> Standardization:
    """Centre and scale with which these features have mean zero and mean square one.

    One scale for all columns (True) keeps their relative sizes, which the encoder has learned; the prior precision and
    gamma then have the same meaning for every feature set. The scale is one if all columns are constant. Without a
    bias the centre is zero, since only a bias can compensate for it. Computed in float64: it happens once per model,
    and every later update inherits its error.

    With ``columns`` each column has mean zero and mean square one, or without a bias mean square one. A column that is
    constant gets the scale that it has with True, since these rows do not tell its size. False changes nothing.

    A column counts as constant if it deviates from its mean by at most eight times the rounding of float32, or of
    float64 for such features: by 0.95 near a million in float32.

    With ``weights`` a row counts as often as its weight says.

    Raises:
        ValueError: the features overflow.
    """
    n_rows, n_features = features.shape
    dtype = torch.promote_types(features.dtype, torch.float32)
    if standardize is False:
        return Standardization(
            features.new_zeros(n_features, dtype=dtype), features.new_ones((), dtype=dtype), has_bias
        )
    share = features.new_full((n_rows,), 1.0 / n_rows, dtype=torch.float64)
    if weights is not None:
        share = weights.double() / weights.double().sum()
    centre, squares = _moments(features, share)
    deviation = squares.mean().sqrt()
    constant = _is_constant(squares.sqrt(), centre, features.dtype).all()
    scale = torch.where(constant, 1.0, deviation.reciprocal()).to(dtype)
    check_overflow("features", deviation, scale)
    if standardize == COLUMNS:
        scale = _scale_of_columns(features, share, centre, scale, has_bias=has_bias)
    centre = centre.to(dtype)
    return Standardization(centre if has_bias else torch.zeros_like(centre), scale, has_bias)


def _moments(
    features: Tensor,  # [N, D] raw
    share: Tensor,  # of each row, [N] float64
) -> tuple[Tensor, Tensor]:  # [D], [D], float64
    """Mean and mean square deviation of each column.

    The mean is taken of the differences from one row, so that a column of equal numbers has exactly that number as its
    mean, and deviation zero. A sum of the numbers themselves would round.
    """
    row = features[share.argmax()].double()  # one with a weight, since the others do not count
    centre, squares = torch.zeros_like(row), torch.zeros_like(row)
    for tile in row_tiles(len(features)):
        centre += share[tile] @ (features[tile].double() - row)
    centre += row
    for tile in row_tiles(len(features)):
        squares += share[tile] @ (features[tile].double() - centre).square()
    return centre, squares


def _is_constant(
    deviation: Tensor,  # of each column from its origin, [D] float64
    origin: Tensor,  # [D] float64
    dtype: torch.dtype,  # of the features
) -> Tensor:  # [D] bool
    """Whether a column is constant: it deviates from its origin by no more than the rounding of its numbers.

    Half precision has the rounding of float32, in which a model computes with it.
    """
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    return deviation <= _RESOLVED * eps * origin.abs()


def _scale_of_columns(
    features: Tensor,  # [N, D] raw
    share: Tensor,  # of each row, [N] float64
    centre: Tensor,  # [D] float64
    scale: Tensor,  # [], for columns that are constant
    *,
    has_bias: bool,
) -> Tensor:  # [D]
    origin = centre if has_bias else torch.zeros_like(centre)
    squares = torch.zeros_like(centre)
    for tile in row_tiles(len(features)):
        squares += share[tile] @ (features[tile].double() - origin).square()
    deviation = squares.sqrt()
    constant = _is_constant(deviation, origin, features.dtype)
    result = torch.where(constant, scale.double(), deviation.reciprocal()).to(scale.dtype)
    check_overflow("features", deviation, result)
    return result


def uneven_columns(
    features: Tensor,  # [N, D] raw
) -> str:
    """The text of a warning if a few columns carry more than half of all variance, or an empty string.

    These columns must be few, an eighth of all at most, and each have 64 times the variance of the usual column (the
    median of those that vary). Principal components, whose variances fall in the order of the columns, give no warning:
    their sizes say how much each tells. Judged from at most 128 rows, evenly spaced, which takes 0.1 ms.
    """
    if len(features) < _JUDGED:
        return ""
    sample = features[:: -(-len(features) // _SAMPLED)]
    centre, every = _moments(sample, sample.new_full((len(sample),), 1.0 / len(sample), dtype=torch.float64))
    few = max(1, len(every) // _FEW)
    if float(every.max()) * few < 0.5 * float(every.sum()):  # so that few columns cannot have half
        return ""
    variances, columns = every.sort(descending=True)
    varying = ~_is_constant(every.sqrt(), centre, features.dtype)
    n_varying = int(varying.sum())
    shares = variances.cumsum(0) / variances.sum()
    if n_varying == 0 or not bool(shares.isfinite().all()):  # they overflow, which is an error elsewhere
        return ""
    count = int((shares <= 0.5).sum()) + 1  # the fewest columns with more than half
    if count > few or count >= n_varying:
        return ""
    if not bool(variances[count - 1] >= _UNEVEN * every[varying].median()):
        return ""
    if len(columns) >= _ORDERED:
        order = torch.stack([columns, torch.arange(len(columns), device=columns.device)]).double()
        if float(order.corrcoef()[0, 1]) > _IN_ORDER:
            return ""
    names = ", ".join(map(str, columns[: min(count, _SHOWN)].tolist())) + (", …" if count > _SHOWN else "")
    what = f"column {names} of features has" if count == 1 else f"{count} columns of features ({names}) have"
    return (
        f"{what} {float(shares[count - 1]):.0%} of all variance, so that the others hardly count: pass "
        "standardize='columns' to scale each column by itself"
    )


class StandardizedLayer(Protocol):
    """A layer that standardises its inputs; ``standardize`` replaces its mean, centre and scale."""

    mean: Tensor
    centre: Tensor
    scale: Tensor
    has_bias: bool


def standardize(
    layer: StandardizedLayer,
    features: Tensor,  # [N, D] raw
    kind: Standardize = True,
) -> None:
    """Set the centre and scale of a layer to those of ``features``; rewrite its mean so that predictions do not change.

    Raises:
        ValueError: the result overflows; the layer is unchanged.
    """
    before = Standardization(layer.centre, layer.scale, layer.has_bias)
    after = fit_standardization(features, has_bias=layer.has_bias, standardize=kind)
    mean = after.of_raw(*before.raw(layer.mean))
    check_overflow("features", mean)
    layer.mean, layer.centre, layer.scale = mean, after.centre, after.scale
