"""Fitting a posterior to data: its layer, its covariance, its prior; and how well that prior explains the data."""

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lapal_ext.posterior import precision as fitting
from lapal_ext.posterior import prior_search as evidence
from lapal_ext.posterior.class_names import check_class_names
from lapal_ext.posterior.gaussian import GaussianLinear
from lapal_ext.posterior.head import check_layer
from lapal_ext.posterior.map_fit import map_weights
from lapal_ext.validation.arrays import Array
from lapal_ext.validation.tensors import (
    ShapeSpec,
    as_dense,
    check_finite,
    check_flag,
    check_generator,
    check_integer,
    check_overflow,
    check_tensors,
    shape_text,
)

_TYPICAL_SQUARE = (0.1, 10.0)  # of a standardised feature; outside it the prior means something else than meant


class EstimatedLinear(GaussianLinear):
    """What of ``LastLayerLaplace`` needs the training data; arguments and attributes are those given there."""

    def __init__(
        self,
        weight: Array,  # [C, D]
        prior_precision: float = 1.0,
        curvature: str = "categorical",
        *,
        bias: Array | None = None,  # [C]
        class_names: Iterable[str] | None = None,  # C of them
    ) -> None:
        super().__init__(weight, prior_precision, curvature, bias, class_names)

    @classmethod
    def from_linear(
        cls,
        head: nn.Linear,
        features: Array,  # [N, D]
        prior_precision: float = 1.0,
        curvature: str = "categorical",
        standardize: bool = False,
        class_names: Iterable[str] | None = None,
    ) -> Self:
        """Put a posterior around a trained layer and fit its covariance to the training features.

        Args:
            head: the layer; with ``standardize`` its weights are rewritten so that its predictions stay as they are.
            features: what the layer was trained on, [N, D].
            prior_precision: lambda > 0.
            curvature: ``categorical`` or ``gaussian``.
            standardize: centre (where the layer has a bias to take it up) and scale the features inside.
            class_names: one per class, distinct, or None.

        Warns:
            UserWarning: the mean square of the features is outside [0.1, 10], so that ``prior_precision`` means
                something else than on standardised features.
        """
        if not isinstance(head, nn.Linear):
            raise TypeError(f"head must be a torch.nn.Linear, got {type(head).__name__}")
        check_layer(head.weight, head.bias, prefix="head.")
        posterior = cls(head.weight, prior_precision, curvature, bias=head.bias, class_names=class_names)
        features = posterior.check_features(features, nonempty=True)
        if check_flag("standardize", standardize):
            posterior.standardize(features.detach())
        else:
            square = float(features.detach().double().square().mean())
            if not _TYPICAL_SQUARE[0] <= square <= _TYPICAL_SQUARE[1]:
                warnings.warn(
                    f"features have mean square {square:.3g}, outside [0.1, 10]: prior_precision and gamma are meant "
                    "for standardised features, pass standardize=True",
                    UserWarning,
                    stacklevel=2,
                )
        return posterior.fit(features)

    @classmethod
    def fit_map(
        cls,
        features: Array,  # [N, D]
        targets: Array,  # [N]
        num_classes: int,
        prior_precision: float = 10.0,
        curvature: str = "categorical",
        fit_bias: bool = True,
        standardize: bool = True,
        class_names: Iterable[str] | None = None,
    ) -> Self:
        """Fit the layer itself, then the covariance around it.

        Minimises sum_n cross_entropy(W phi_n, y_n) + lambda / 2 |W|^2, bias included, to convergence by a
        trust-region Newton method.

        Args:
            features: [N, D], N >= 1.
            targets: labels in [0, num_classes), [N]; classes may be missing.
            num_classes: C >= 2.
            prior_precision: lambda > 0.
            curvature: ``categorical`` or ``gaussian``.
            fit_bias: whether the layer has a bias.
            standardize: centre and scale the features inside; with a bias nothing but the scale of the prior changes.
            class_names: one per class, distinct, or None.
        """
        num_classes, features, labels = cls._check_labelled(features, targets, num_classes)
        names = check_class_names(class_names, num_classes)
        posterior = cls._at_map(
            features,
            labels,
            num_classes,
            prior_precision,
            curvature,
            check_flag("fit_bias", fit_bias),
            check_flag("standardize", standardize),
        )
        posterior.class_names = names
        return posterior.fit(features)

    @classmethod
    def optimize_prior_precision(
        cls,
        features: Array,  # [N, D]
        targets: Array,  # [N]
        num_classes: int,
        prior_precisions: Array | None = None,  # [P]
        n_folds: int = 5,
        fit_bias: bool = True,
        standardize: bool = True,
        generator: torch.Generator | None = None,
    ) -> float:
        """Return the prior precision with which ``fit_map`` predicts held-out labels best.

        Cross-validation: the rows are dealt to ``n_folds`` folds at random, class by class, and the score is the
        negative log-likelihood of each fold under the mean fitted to the others, summed over all rows. The curvature
        plays no part in it.

        Args:
            features: [N, D], N >= 2.
            targets: labels in [0, num_classes), [N]; classes may be missing.
            num_classes: C >= 2.
            prior_precisions: the values to try, float [P]; by default 11 from 0.01 to 1000, two per power of ten.
            n_folds: 2 to N.
            fit_bias: as for ``fit_map``.
            standardize: as for ``fit_map``; on each training part for itself.
            generator: of the folds; the same draws give the same result.

        Returns:
            One of ``prior_precisions``, the first of equals. P ``n_folds`` fits.
        """
        num_classes, features, labels = cls._check_labelled(features, targets, num_classes)
        n_rows = len(labels)
        if n_rows < 2:
            raise ValueError(f"features must have at least two rows to hold some out, got {shape_text(features.shape)}")
        if prior_precisions is None:
            prior_precisions = torch.logspace(-2.0, 3.0, 11, dtype=torch.float64)
        grid = check_prior_precisions("prior_precisions", prior_precisions, features.dtype)
        if grid.dim() != 1 or len(grid) == 0:
            raise ValueError(f"prior_precisions must have shape (P,) with P >= 1, got {shape_text(grid.shape)}")
        n_folds = check_integer("n_folds", n_folds, at_least=2, at_most=n_rows, limit="the rows of features")
        check_flag("fit_bias", fit_bias)
        check_flag("standardize", standardize)
        check_generator("generator", generator)
        fold = evidence.deal_folds(labels, n_folds, generator)
        scores = torch.zeros(len(grid), dtype=torch.float64)
        for place, prior_precision in enumerate(grid.tolist()):
            for number in range(n_folds):
                out = fold == number
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", RuntimeWarning)  # a fit just short of converged scores as well
                    model = cls._at_map(
                        features[~out], labels[~out], num_classes, prior_precision, "categorical", fit_bias, standardize
                    )
                logits = model.predict_logits(features[out]).double()
                scores[place] += torch.nn.functional.cross_entropy(logits, labels[out], reduction="sum").item()
        check_overflow("features", scores)
        return float(grid[scores.argmin()])

    @classmethod
    def _check_labelled(cls, features: Array, targets: Array, num_classes: int) -> tuple[int, Tensor, Tensor]:
        num_classes = check_integer("num_classes", num_classes, at_least=2)
        features = as_dense("features", features).detach()
        check_tensors({"features": ShapeSpec.parse("[N, D]")}, {"features": features})
        if features.numel() == 0:
            raise ValueError(f"features must have at least one row and one column, got {shape_text(features.shape)}")
        check_finite("features", features)
        any_model = cls(features.new_zeros(num_classes, features.shape[1]))
        return num_classes, features, any_model.check_targets(targets, features.shape[0])

    @classmethod
    def _at_map(
        cls,
        features: Tensor,  # [N, D]
        labels: Tensor,  # [N]
        num_classes: int,
        prior_precision: float,
        curvature: str,
        fit_bias: bool,
        standardize: bool,
    ) -> Self:
        """A posterior with the MAP weights as its mean and no covariance yet."""
        bias = features.new_zeros(num_classes) if fit_bias else None
        posterior = cls(features.new_zeros(num_classes, features.shape[1]), prior_precision, curvature, bias=bias)
        if standardize:
            posterior.standardize(features)
        inner = posterior.inner_features(features)
        weights = map_weights(inner, labels, num_classes, posterior.prior_precision)
        posterior.mean = weights.to(features.dtype)
        return posterior

    @torch.no_grad()
    def fit(
        self,
        features: Array,  # [N, D]
    ) -> Self:
        """Set Sigma from data at the present mean; exact and repeatable (it replaces, never accumulates).

        Args:
            features: [N, D]; no rows leave the prior.

        Returns:
            self.
        """
        features = self.check_features(features)
        inner = (self.inner_features(tile) for tile in fitting.tiles(features))
        self.set_precision(fitting.precision_matrix(inner, self.mean, self.prior_precision, self.curvature))
        return self

    @torch.no_grad()
    def log_marginal_likelihood(
        self,
        features: Array,  # [N, D]
        targets: Array,  # [N]
        prior_precisions: Array | None = None,  # any shape
    ) -> Tensor:  # of that shape
        """Laplace evidence of this posterior's own model at its present mean, as a function of the prior precision.

        log p(y | W) - lambda/2 |W|^2 - C/2 log |I + G / lambda|, G = sum_n s_n phi_n phi_n^T with this posterior's
        curvature s and one G for all classes. All prior precisions share one eigendecomposition of G; the mean, which
        was fitted with one of them, stays where it is. In float64; the covariance plays no part.

        Do not choose the prior precision by maximising it: that over-regularises. s is p_max (1 - p_max) for every
        class, where the softmax Hessian diag(p) - p p^T has the trace 1 - |p|^2, rank C - 1 and, with many classes,
        next to no curvature in most directions. The determinant thus charges C weights per feature as if the data had
        settled every one of them, and a larger lambda lowers the charge. ``optimize_prior_precision`` does not have
        this bias.

        Args:
            features: what the mean was fitted to, [N, D].
            targets: labels in [0, C), [N].
            prior_precisions: lambda > 0, floating point; the one of this posterior by default.

        Returns:
            One value for each of ``prior_precisions``, of its shape: 0-d by default. O(N D^2 + D^3).

        Source: MacKay (1992), "The Evidence Framework Applied to Classification Networks".
        """
        features = self.check_features(features)
        labels = self.check_targets(targets, features.shape[0])
        if prior_precisions is None:
            prior_precisions = torch.tensor(self.prior_precision, dtype=torch.float64)
        grid = check_prior_precisions("prior_precisions", prior_precisions, self.mean.dtype).to(self.mean.device)
        tiles = (self.inner_features(tile) for tile in fitting.tiles(features))
        values = evidence.log_evidence(tiles, labels, self.mean, grid.flatten(), self.curvature).to(self.mean.dtype)
        check_overflow("features", values)
        return values.view(grid.shape)


def check_prior_precisions(
    name: str,
    value: object,
    dtype: torch.dtype,
) -> Tensor:  # of its shape, float64
    """Return prior precisions in float64 or raise a typed error unless all of them have an inverse in ``dtype``."""
    values = as_dense(name, value)
    if not values.dtype.is_floating_point:
        raise TypeError(f"{name} must be floating point numbers, got {values.dtype}")
    check_finite(name, values)
    smallest = torch.finfo(dtype).tiny
    wide = values.detach().double()
    if not bool(((wide >= smallest) & (wide <= 1.0 / smallest)).all()):
        raise ValueError(f"{name} must lie in [{smallest:.2g}, {1.0 / smallest:.2g}], got {wide.tolist()}")
    return wide
