"""The Gaussian posterior over a last layer: its state, how it is fitted, its updates and its predictions."""

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lapal_ext import ops
from lapal_ext.entries import entry, outside_inference_mode, warn
from lapal_ext.errors import StorageError
from lapal_ext.likelihood import CURVATURES, STEPS, curvature_weight
from lapal_ext.posterior import prior_search
from lapal_ext.posterior.arguments import (
    MEAN,
    LabelledFeatures,
    check_classes,
    check_features,
    check_first_features,
    check_gamma,
    check_labelled,
    check_layer,
    check_module_input,
    check_prior_precision,
    check_prior_precisions,
    check_standardize,
    check_targets,
    check_tolerance,
    require_fitted,
    trust_of,
)
from lapal_ext.posterior.class_names import check_class_names, check_new_name, first_names
from lapal_ext.posterior.export import write_linear
from lapal_ext.posterior.head import HeadLayer, read_head
from lapal_ext.posterior.map_fit import TOLERANCE, cholesky_factor, map_weights_from
from lapal_ext.posterior.precision import PendingPrecision, add_observations, inverse, precision_matrix
from lapal_ext.posterior.standardization import COLUMNS, Standardization, Standardize, uneven_columns
from lapal_ext.posterior.standardization import standardize as _standardize
from lapal_ext.posterior.state import ATTRIBUTES, EXTRA_STATE, check_state, read_file, write_file
from lapal_ext.posterior.updating import absorb, check_variance
from lapal_ext.rules import LINKS, UpdateRule, check_link
from lapal_ext.tiles import row_tiles
from lapal_ext.validation.arrays import Array, Labels
from lapal_ext.validation.scalars import (
    check_choice,
    check_device,
    check_flag,
    check_generator,
    check_integer,
)
from lapal_ext.validation.tensors import (
    COMPUTE_DTYPES,
    check_finite,
    check_overflow,
    check_tensors,
)

_JOINT = "joint"
UPDATE_STEPS = (*STEPS, _JOINT)
_DEFAULT_SAMPLES = 1000
_TYPICAL_SQUARE = (0.1, 10.0)  # mean square of features for which prior_precision has its usual meaning


class LatentPrediction(NamedTuple):
    """Distribution of the logits of N rows: class k of row n is Normal(logits[n, k], variance[n])."""

    logits: Tensor  # [N, C]
    variance: Tensor  # [N]


@entry
class LastLayerLaplace(nn.Module):
    """Gaussian posterior over the weights of a linear softmax layer, with one covariance for all classes.

    Class row k of the weights is Normal(mean_k, Sigma), Sigma = (lambda I + sum_n s_n phi_n phi_n^T)^-1 with s = 1
    (``gaussian``) or p_max (1 - p_max) (``categorical``). A label is absorbed in closed form instead of by retraining.

    A bias is one more constant feature: ``mean`` is then [C, D + 1] and ``covariance`` [D + 1, D + 1] while inputs stay
    [N, D], and updates move it like any other weight. ``centre`` and ``scale`` standardise inputs inside every method.

    Every method accepts NumPy arrays in place of tensors, without conversion: arrays of features must have the dtype of
    ``mean``. A model that is fitted to arrays of float64, the default of NumPy, is a float64 model. Features in half
    precision are for float32 models, which compute with the same values in float32.

    The posterior is a module that can replace the layer: called on features [..., D], it returns the logits of the
    layer.

    Source: Huseljic et al., "Efficient Bayesian Updates for Deep Active Learning via Laplace Approximations",
    arXiv 2210.06112; bias, standardising, line search and the blocked exact updates are ours.

    Args:
        weight: of the layer, [C, D], float32 or float64; copied.
        prior_precision: lambda > 0.
        curvature: ``categorical`` or ``gaussian``.
        bias: of the layer, [C], or None for a layer without.
        class_names: one per class, distinct, or None.

    Attributes:
        mean: [C, D], or [C, D + 1] with a bias; a buffer.
        covariance: Sigma, symmetric; a buffer.
        precision: inverse of ``covariance``. It is in the state dict but is not a buffer: it is computed again if other
            code changes the covariance.
        centre: subtracted from the features, [D]; a buffer.
        scale: multiplies the centred features, 0-d, or [D] if each column has its own; a buffer.
        standardization: ``centre``, ``scale`` and ``has_bias`` in one object, with a method ``standardized(features)``.
        has_bias: whether the last column of ``mean`` is a bias.
        num_classes: C.
        num_features: D, without the bias.
        prior_precision: lambda.
        curvature: ``categorical`` or ``gaussian``.
        fitted: whether ``fit`` has been called.
        fitted_rows: number of rows that were passed to ``fit``.
        absorbed_labels: number of labels that updates have absorbed since then.
        class_names: C strings, or None; kept by ``clone``, ``save`` and ``state_dict``, and extended by ``add_class``.
    """

    mean: Tensor
    covariance: Tensor
    centre: Tensor
    scale: Tensor

    @outside_inference_mode
    def __init__(
        self,
        weight: Array,  # [C, D]
        prior_precision: float = 1.0,
        curvature: str = "categorical",
        *,
        bias: Array | None = None,  # [C]
        class_names: Iterable[str] | None = None,  # C of them
    ) -> None:
        super().__init__()
        weight, bias = check_layer(weight, bias)
        columns = [weight.detach()] if bias is None else [weight.detach(), bias.detach()[:, None]]
        mean = torch.cat(columns, 1).clone()
        self.prior_precision = check_prior_precision(prior_precision, mean.dtype)
        check_choice("curvature", curvature, CURVATURES)
        self.curvature = curvature
        self.has_bias = bias is not None
        self.fitted, self.fitted_rows, self.absorbed_labels = False, 0, 0
        identity = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
        self.register_buffer("mean", mean)
        self.register_buffer("centre", mean.new_zeros(weight.shape[1]))
        self.register_buffer("scale", mean.new_ones(()))
        self.register_buffer("covariance", identity / self.prior_precision)
        self._precision = PendingPrecision(self.covariance, identity * self.prior_precision)
        self.class_names = class_names

    # Construction

    @classmethod
    @outside_inference_mode
    def from_linear(
        cls,
        head: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d,
        features: Array,  # [N, D]
        prior_precision: float = 1.0,
        curvature: str = "categorical",
        standardize: Standardize = False,
        class_names: Iterable[str] | None = None,
    ) -> Self:
        """Put a posterior around a trained layer and fit its covariance to the training features.

        Args:
            head: the layer, an nn.Linear or a convolution of one position; not modified. A layer with a single logit
                has two classes, of which the first has a row of zeros. A computed weight (weight_norm, spectral_norm)
                is that of evaluation mode. What the layer gives is compared with W features + b on a few rows. Around a
                layer in half precision the posterior is in float32.
            features: the training features of the layer, [N, D].
            prior_precision: lambda > 0.
            curvature: ``categorical`` or ``gaussian``.
            standardize: centre and scale the features internally (without a bias only scale them); ``mean`` is
                rewritten so that predictions do not change. True has one scale for all columns, ``columns`` one for
                each.
            class_names: one per class, distinct, or None.

        Raises:
            TypeError, ValueError: an argument is invalid, or the layer computes something else, as a cosine head, a
                temperature or a hook does; the message says what was seen.

        Warns:
            UserWarning: a few columns carry more than half of all variance, or the mean square of the features is
                outside [0.1, 10], so that ``prior_precision`` does not have the meaning that it has for standardised
                features.
        """
        layer = read_head(head)
        posterior = cls(layer.weight, prior_precision, curvature, bias=layer.bias, class_names=class_names)
        features = check_features(posterior, features, nonempty=True)
        layer.check_computes(features)
        kind = check_standardize(standardize)
        if kind is not False:
            _standardize(posterior, features.detach(), kind)
        if text := _uneven(features, kind):
            warn(text, UserWarning)
        elif kind is False:
            square = float(features.detach().double().square().mean())
            if not _TYPICAL_SQUARE[0] <= square <= _TYPICAL_SQUARE[1]:
                warn(
                    f"features have mean square {square:.3g}, outside [0.1, 10]: prior_precision and gamma are meant "
                    "for standardised features, pass standardize=True",
                    UserWarning,
                )
        return posterior.fit(features)

    @classmethod
    @outside_inference_mode
    def fit_map(
        cls,
        features: Array,  # [N, D]
        targets: Labels,  # [N]
        num_classes: int | None = None,
        prior_precision: float = 10.0,
        curvature: str = "categorical",
        fit_bias: bool = True,
        standardize: Standardize = True,
        class_names: Iterable[str] | None = None,
        *,
        start: "LastLayerLaplace | None" = None,
        weights: Array | None = None,  # [N]
        tolerance: float = TOLERANCE,
    ) -> Self:
        """Fit the layer, then its covariance.

        Minimises sum_n t_n cross_entropy(W phi_n, y_n) + lambda / 2 |W|^2, bias included, by L-BFGS with a curvature
        for each class; features that are scaled so badly that float32 does not resolve them are left to Newton's method
        in float64.

        Args:
            features: [N, D], N >= 1.
            targets: labels in [0, num_classes), or names in ``class_names``, [N]; classes may be missing.
            num_classes: C >= 2; needed unless ``class_names`` are given.
            prior_precision: lambda > 0.
            curvature: ``categorical`` or ``gaussian``.
            fit_bias: whether the layer has a bias.
            standardize: centre and scale the features internally; with a bias this only changes the scale of the prior.
                True has one scale for all columns, which keeps their relative sizes, as an encoder has learned them.
                ``columns`` has one for each, for columns in different units.
            class_names: one per class, distinct, or None.
            start: a posterior for the same features, at whose mean the fit begins, as after a few new labels. Classes
                that it does not have begin at the mean of those that it has. None begins at zero.
            weights: trust t >= 0 in every row, [N], which then counts as often; 0 leaves a row out. None is one.
            tolerance: the largest change of any probability of the rows that may be still to come when the fit ends, as
                estimated from its last steps; 0 goes on to the limit of float64.

        Warns:
            UserWarning: a few columns carry more than half of all variance.
            RuntimeWarning: the fit has not converged.
        """
        num_classes, names = check_classes(num_classes, class_names)
        data = check_labelled(features, targets, num_classes, names, weights)
        fit_bias = check_flag("fit_bias", fit_bias)
        bias = data.features.new_zeros(data.num_classes) if fit_bias else None
        weight = data.features.new_zeros(data.num_classes, data.features.shape[1])
        kind = check_standardize(standardize)
        posterior = cls(weight, prior_precision, curvature, bias=bias, class_names=names)
        fit, standardization = prior_search.fit_layer(
            data,
            posterior.prior_precision,
            fit_bias=fit_bias,
            standardize=kind,
            start=None if start is None else _start_of(start, data),
            tolerance=check_tolerance(tolerance),
        )
        if text := _uneven(data.features, kind):
            warn(text, UserWarning)
        if warning_text := fit.warning_text("fit_map"):
            warn(warning_text, RuntimeWarning)
        posterior.mean = fit.weight.to(data.features.dtype)
        posterior.centre, posterior.scale = standardization.centre, standardization.scale
        return posterior._fit_covariance(data.features, data.weights)

    @classmethod
    @outside_inference_mode
    def untrained(
        cls,
        features: Array,  # [N, D]
        num_classes: int | None = None,
        prior_precision: float = 10.0,
        curvature: str = "categorical",
        fit_bias: bool = True,
        standardize: Standardize = True,
        class_names: Iterable[str] | None = None,
    ) -> Self:
        """Make the prior alone, for a pool without any label: every class is equally likely everywhere.

        Its first batch is ``select_batch(model, pool, n, "maxherding")``, which needs no labels.

        Args:
            features: unlabelled features, [N, D], N >= 1. They set the centre and scale, and nothing else.
            num_classes: C >= 2; needed unless ``class_names`` are given.
            prior_precision: lambda > 0.
            curvature: ``categorical`` or ``gaussian``.
            fit_bias: whether the layer has a bias.
            standardize: centre and scale the features internally (without a bias only scale them), as for ``fit_map``.
            class_names: one per class, distinct, or None.

        Warns:
            UserWarning: a few columns carry more than half of all variance.
        """
        num_classes, names = check_classes(num_classes, class_names)
        num_classes = check_integer("num_classes", num_classes, at_least=2)
        features = check_first_features(features)
        weight = features.new_zeros(num_classes, features.shape[1])
        bias = weight[:, 0] if check_flag("fit_bias", fit_bias) else None
        posterior = cls(weight, prior_precision, curvature, bias=bias, class_names=names)
        kind = check_standardize(standardize)
        if kind is not False:
            _standardize(posterior, features, kind)
        if text := _uneven(features, kind):
            warn(text, UserWarning)
        return posterior.fit(features[:0])

    @classmethod
    def optimize_prior_precision(
        cls,
        features: Array,  # [N, D]
        targets: Labels,  # [N]
        num_classes: int | None = None,
        prior_precisions: Array | None = None,  # [P]
        n_folds: int | None = None,
        fit_bias: bool = True,
        standardize: Standardize = True,
        generator: torch.Generator | None = None,
        class_names: Iterable[str] | None = None,
    ) -> float:
        """Return the prior precision with which ``fit_map`` predicts held-out labels best.

        Stratified cross-validation: the rows of each class are assigned to ``n_folds`` folds at random. The score is
        the negative log-likelihood of each fold under the mean fitted to the others, summed over all rows. The
        curvature is not used.

        Args:
            features: [N, D], N >= 2.
            targets: labels in [0, num_classes), or names in ``class_names``, [N]; classes may be missing.
            num_classes: C >= 2; needed unless ``class_names`` are given.
            prior_precisions: the values to try, float [P]; by default 11 from 0.01 to 1000, two per power of ten.
            n_folds: 2 to N; by default 5, or N if there are fewer rows.
            fit_bias: as for ``fit_map``.
            standardize: as for ``fit_map``, separately for each training part.
            generator: for the folds; the same draws give the same result.
            class_names: one per class, distinct, or None.

        Returns:
            One of ``prior_precisions``; ties go to the first. The cost is P ``n_folds`` fits.

        Warns:
            UserWarning: the result is the smallest or the largest of ``prior_precisions``, or a few columns carry more
                than half of all variance.
        """
        num_classes, names = check_classes(num_classes, class_names)
        data = check_labelled(features, targets, num_classes, names)
        kind = check_standardize(standardize)
        best, at_edge = prior_search.best_prior_precision(
            data,
            prior_precisions,
            n_folds,
            fit_bias=check_flag("fit_bias", fit_bias),
            standardize=kind,
            generator=generator,
        )
        for text in filter(None, (_uneven(data.features, kind), at_edge)):
            warn(text, UserWarning)
        return best

    @outside_inference_mode
    @torch.no_grad()
    def fit(
        self,
        features: Array,  # [N, D]
    ) -> Self:
        """Compute Sigma from data at the current mean. A repeated call replaces Sigma, it does not accumulate.

        Args:
            features: [N, D]; N = 0 gives the prior.

        Returns:
            self.
        """
        return self._fit_covariance(check_features(self, features), None)

    @outside_inference_mode
    @torch.no_grad()
    def _fit_covariance(
        self,
        features: Tensor,  # [N, D]
        weights: Tensor | None,  # [N]
    ) -> Self:
        tiles = self._tiles(features)
        matrices = precision_matrix(tiles, self.mean, self.prior_precision, self.curvature, weights)
        changes = self._with_precision(*matrices)
        return self._keep(**changes, fitted=True, fitted_rows=features.shape[0], absorbed_labels=0)

    @outside_inference_mode
    def refit(
        self,
        features: Array,  # [N, D]
        targets: Labels,  # [N]
        *,
        weights: Array | None = None,  # [N]
        tolerance: float = TOLERANCE,
    ) -> Self:
        """Fit a new posterior to all labels, beginning at the mean of this one, which is not modified.

        It has the prior precision, curvature, bias, kind of standardising and class names of this one, and as many
        classes, also those that ``add_class`` has added. A fit that begins where updates ended takes fewer passes
        over the features than one from nothing.

        Args:
            features: of all labelled rows, [N, D], N >= 1, not only of new ones.
            targets: labels in [0, C), or names in ``class_names``, [N].
            weights: as for ``fit_map``.
            tolerance: as for ``fit_map``.

        Returns:
            The new posterior.

        Raises:
            ValueError, TypeError: an argument is invalid, or overflows.

        Warns:
            RuntimeWarning: the fit has not converged.
        """
        features = check_features(self, features, nonempty=True)
        return type(self).fit_map(
            features,
            targets,
            self.num_classes,
            self.prior_precision,
            self.curvature,
            self.has_bias,
            self.standardization.kind,
            self.class_names,
            start=self,
            weights=weights,
            tolerance=tolerance,
        )

    @outside_inference_mode
    @torch.no_grad()
    def add_class(self, name: str | None = None) -> Self:
        """Add a new class, as number C, before its first label; in place.

        Its mean row is the mean of the other rows, bias included, so that its logit is the mean of theirs. This is the
        zero of the prior. A vector that is added to all rows does not change the softmax, and the prior prefers rows
        that sum to zero. The rows of ``fit_map`` do so, and updates keep the sum; in another layer, the new row is zero
        after the mean of the rows is subtracted. Sigma and the precision do not change, since all classes share them.
        So before its first label

        - its probability (``plugin``, ``mean_field``) is 1 / (C + 1) if all logits are equal, and smaller otherwise;
        - it is never the likeliest class (``argmax`` gives ties to the lowest number);
        - every other p_k is multiplied by 1 - p_new: the likeliest class and all odds between the others do not change.

        Earlier labels are no evidence against the new class: it was not available for them. If it was, because the rows
        were checked for this class, refit with C + 1 classes.

        Updates move the new row by the Sigma of all classes, which is small after many labels of the other classes.
        After hundreds of them, a few labels of the new class have little effect: use a larger ``gamma`` for those, or
        refit.

        A ``SequentialSelector`` keeps its initial classes: make another one with a posterior that has the new class,
        and load the state of the first into it.

        Args:
            name: of the class, different from all others. It is required if the classes have names, and must be None
                otherwise.

        Returns:
            self. ``clone().add_class()`` does not modify this posterior.

        Raises:
            TypeError, ValueError: the name is invalid; the posterior is unchanged.
        """
        names = check_new_name(name, self._class_names)
        mean = torch.cat([self.mean, self.mean.mean(0, keepdim=True)])
        check_overflow("mean", mean)
        return self._keep(mean=mean, _class_names=names)

    # Absorbing labels

    def update(
        self,
        features: Array,  # [N, D]
        targets: Labels,  # [N]
        step: str = "line_search",
        gamma: float | Array = 1.0,  # [] or [N]
    ) -> Self:
        """Absorb labels in place, in order; after an error the posterior is unchanged.

        Args:
            features: [N, D].
            targets: labels in [0, C), or names in ``class_names``, [N].
            step: ``line_search`` (needs no tuning) and ``newton`` (the paper's) absorb one label after another in
                closed form, see ``likelihood.step_length``. ``joint`` finds the mode of all labels together by a small
                fit. For many labels at once it is closer to a refit; it costs a few D^3.
            gamma: trust in the new labels, >= 0, a number or one per row; 1 is Bayes. It scales how far a label moves
                the mean; the covariance does not depend on it.

        Returns:
            self.

        Raises:
            ValueError, TypeError: an argument is invalid, or overflows.
            NotFittedError: ``fit`` has not been called.
            NotPSDError: the covariance is no longer positive semi-definite, or its dtype cannot hold the new one
                (features of norm 1e4 and more, not standardised, in float32).

        Warns:
            RuntimeWarning: the small fit of ``joint`` has not converged.
        """
        return self._keep(**self._absorbed(features, targets, step, gamma))

    def condition_on(
        self,
        features: Array,  # [N, D]
        targets: Labels,  # [N]
        step: str = "line_search",
        gamma: float | Array = 1.0,  # [] or [N]
    ) -> Self:
        """Return a new posterior that has absorbed the labels; this one is not modified. See ``update``.

        It costs the same as ``update``: the precision is not copied, and that of the new one is computed when it is
        first read.
        """
        changes = self._absorbed(features, targets, step, gamma)
        return self._successor()._keep(**changes)

    @outside_inference_mode
    @torch.no_grad()
    def _absorbed(
        self,
        features: Array,
        targets: Labels,
        step: str,
        gamma: float | Array,
        name: str = "features",
        rows: Tensor | None = None,
    ) -> dict[str, Any]:
        """What changes as labels are absorbed, for ``_keep``.

        Errors about a row say which one of the argument ``name`` it is, by its number in ``rows`` if that is given.
        """
        require_fitted(self.fitted)
        features = check_features(self, features, name=name)
        count = features.shape[0]
        labels = check_targets(self, targets, count)
        check_choice("step", step, UPDATE_STEPS)
        runs = check_gamma(gamma, features)
        x = self.standardization.standardized(features)
        if step == _JOINT and count > 0 and any(run.gamma > 0.0 for run in runs):
            changes = self._absorbed_jointly(x, labels, trust_of(runs, x))
        else:
            # Without labels or with gamma = 0 the mean does not move, and all steps are the same.
            step = STEPS[0] if step == _JOINT else step
            before = self.covariance
            if len(runs) == 1:
                rule = UpdateRule(runs[0].gamma, step, self.curvature)
                mean, covariance, weights = absorb(self.mean, before, x, labels, rule, name, rows)
            else:
                mean, covariance, gained = self.mean, before, []
                numbers = torch.arange(count, device=x.device) if rows is None else rows
                for run, trust in runs:
                    rule = UpdateRule(trust, step, self.curvature)
                    mean, covariance, weights = absorb(mean, covariance, x[run], labels[run], rule, name, numbers[run])
                    gained.append(weights)
                weights = torch.cat(gained)
            precision = self._precision.plus(x, weights, before, covariance)
            changes = {"mean": mean, "covariance": covariance, "_precision": precision}
        return {**changes, "absorbed_labels": self.absorbed_labels + count}

    def _absorbed_jointly(
        self,
        x: Tensor,  # [n, D], standardised
        labels: Tensor,  # [n]
        gamma: Tensor,  # [n]
    ) -> dict[str, Any]:
        fit = map_weights_from(self.mean, cholesky_factor(self.covariance), x, labels, gamma)
        mean, x64 = fit.weight.to(self.mean.dtype), x.double()
        check_overflow("features", mean)
        weights = curvature_weight(x64 @ fit.weight.T, self.curvature)
        changes = self._with_precision(add_observations(self.precision.double(), x64, weights))
        if warning_text := fit.warning_text("update"):
            warn(warning_text, RuntimeWarning)
        return {**changes, "mean": mean}

    @outside_inference_mode
    @torch.no_grad()
    def refresh(self) -> Self:
        """Invert the precision again, which removes the rounding errors of many updates; returns self."""
        require_fitted(self.fitted)
        precision = self.precision
        covariance = inverse(precision).to(self.mean.dtype)
        return self._keep(covariance=covariance, _precision=PendingPrecision(covariance, precision))

    @torch.no_grad()
    def drift(self) -> float:
        """Distance of the covariance from the inverse of the precision, |Sigma Lambda - I| / sqrt(D), in float64."""
        require_fitted(self.fitted)
        product = self.covariance.double() @ self.precision.double()
        product.diagonal().sub_(1.0)
        distance = product.norm()
        check_overflow("posterior", distance)
        return float(distance) / math.sqrt(product.shape[0])

    # Predictions

    def forward(
        self,
        features: Tensor,  # [..., D]
    ) -> Tensor:  # [..., C]
        """Mean of the logits, as the layer returns them: the posterior can replace the layer in a model.

        Gradients flow to the features; the posterior has no parameters. Values are not checked: unlike in
        ``predict_logits``, NaN in the features gives NaN in the logits. Within ``torch.autocast`` the logits are those
        of ``to_linear()`` there, in half precision, while all other methods compute as outside of it.

        Raises:
            TypeError: not a dense tensor, or its dtype is not that of ``mean``, outside ``torch.autocast``.
            ValueError: it does not have D columns, or is on another device.
        """
        features = check_module_input(self, features)
        if torch.is_autocast_enabled(features.device.type):  # the offsets of a centre far from zero need all digits
            with torch.autocast(features.device.type, enabled=False):
                weights, offsets = self.standardization.raw(self.mean)
        else:
            weights, offsets = self.standardization.raw(self.mean)
        return nn.functional.linear(features, weights, offsets)

    @torch.no_grad()
    def predict_logits(
        self,
        features: Array,  # [N, D]
    ) -> Tensor:  # [N, C]
        """Mean of the logits, z = W phi, without their variance; works before ``fit``."""
        features = check_features(self, features)
        weights, offsets = self.standardization.raw(self.mean)
        if features.dtype == weights.dtype:
            logits = torch.addmm(offsets, features, weights.T)
        else:  # half precision, widened a tile at a time
            logits = weights.new_empty(len(features), len(weights))
            for rows in row_tiles(len(features)):
                torch.addmm(offsets, features[rows].to(weights.dtype), weights.T, out=logits[rows])
        check_overflow("features", logits)
        return logits

    @torch.no_grad()
    def predict_latent(
        self,
        features: Array,  # [N, D]
    ) -> LatentPrediction:
        """Mean and variance of the logits: z = W phi, v = phi^T Sigma phi (one for all classes).

        Raises:
            ValueError, TypeError: ``features`` is invalid, or overflows.
            NotFittedError: ``fit`` has not been called.
            NotPSDError: a variance is below zero by more than rounding, or is mostly rounding.
        """
        require_fitted(self.fitted)
        features = check_features(self, features)
        logits = self.mean.new_empty(features.shape[0], self.num_classes)
        variance = self.mean.new_empty(features.shape[0])
        for rows in row_tiles(features.shape[0]):
            x = self.standardization.standardized(features[rows])
            torch.mm(x, self.mean.T, out=logits[rows])
            variance[rows] = ops.predictive_variance.unchecked(x, self.covariance)
            check_variance(variance[rows], x, self.covariance, "features", rows.start)
        check_overflow("features", logits)
        return LatentPrediction(logits, variance)

    @torch.no_grad()
    def predict_proba(
        self,
        features: Array,  # [N, D]
        link: str = "mean_field",
        n_samples: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:  # [N, C]
        """Predictive probabilities.

        Args:
            features: [N, D].
            link: ``mean_field`` is softmax(z / sqrt(1 + pi v / 8)), which is also the probit link here; ``plugin`` is
                softmax(z), which needs no covariance; ``mc`` is the mean softmax over samples of the logits.
            n_samples: for ``mc`` only, 1000 by default.
            generator: for ``mc`` only.

        Returns:
            [N, C], rows sum to one.
        """
        chosen = check_link(link, tuple(LINKS))
        check_generator("generator", generator, self.mean.device)
        if n_samples is not None and chosen.name != "mc":
            raise ValueError(f"n_samples is for link='mc', got it with link={link!r}")
        if not chosen.uses_variance:
            return ops.predictive.unchecked(self.predict_logits(features), None, chosen.kappa)
        if chosen.name != "mc":
            return ops.predictive.unchecked(*self.predict_latent(features), chosen.kappa)
        count = check_integer("n_samples", _DEFAULT_SAMPLES if n_samples is None else n_samples, at_least=1)
        latent = self.predict_latent(features)
        shape = (count, self.num_classes)
        noise = torch.randn(shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return ops.mc_predictive(*latent, noise)[0]

    @torch.no_grad()
    def log_marginal_likelihood(
        self,
        features: Array,  # [N, D]
        targets: Labels,  # [N]
        prior_precisions: Array | None = None,  # any shape
    ) -> Tensor:  # of that shape
        """Laplace evidence of this posterior's model at its current mean, as a function of the prior precision.

        log p(y | W) - lambda/2 |W|^2 - C/2 log |I + G / lambda|, G = sum_n s_n phi_n phi_n^T with this posterior's
        curvature s and one G for all classes. All prior precisions share one eigendecomposition of G. The mean is not
        fitted again for each of them. Computed in float64; the covariance is not used.

        Do not choose the prior precision by maximising it: that over-regularises. s is p_max (1 - p_max) for every
        class, while the softmax Hessian diag(p) - p p^T has the trace 1 - |p|^2, rank C - 1 and, with many classes,
        next to no curvature in most directions. The determinant thus penalises C weights per feature as if the data
        determined all of them, and a larger lambda reduces the penalty. ``optimize_prior_precision`` does not have this
        bias.

        Args:
            features: the rows that the mean was fitted to, [N, D].
            targets: labels in [0, C), [N].
            prior_precisions: lambda > 0, floating point; by default that of this posterior.

        Returns:
            One value for each of ``prior_precisions``, of its shape: 0-d by default. O(N D^2 + D^3).

        Source: MacKay (1992), "The Evidence Framework Applied to Classification Networks".
        """
        features = check_features(self, features)
        labels = check_targets(self, targets, features.shape[0])
        if prior_precisions is None:
            prior_precisions = torch.tensor(self.prior_precision, dtype=torch.float64, device="cpu")
        grid = check_prior_precisions("prior_precisions", prior_precisions, self.mean.dtype).to(self.mean.device)
        values = prior_search.log_evidence(self._tiles(features), labels, self.mean, grid.flatten(), self.curvature).to(
            self.mean.dtype
        )
        check_overflow("features", values)
        return values.view(grid.shape)

    # Layers, copies and files

    @overload
    def to_linear(self, out: None = None) -> nn.Linear: ...

    @overload
    def to_linear(self, out: HeadLayer) -> HeadLayer: ...

    @torch.no_grad()
    def to_linear(self, out: HeadLayer | None = None) -> HeadLayer | nn.Linear:
        """Return the mean as a plain layer on raw features, or write it into an existing layer.

        Args:
            out: an existing layer, whose weight and bias are overwritten; after an error it is unchanged. It may be on
                another device, in half precision if this posterior is in float32, and any layer that ``from_linear``
                takes: a convolution of one position, or a layer with a single logit, which gets the difference of two
                classes. By default a new layer is made, with a bias if this posterior has one.

        Returns:
            ``out``, or the new layer.

        Raises:
            TypeError: ``out`` is no such layer, its weight is parametrized, or it has another dtype.
            ValueError: it has another shape, or only one of the layer and this posterior has a bias; it computes
                something else than W features + b; or the mean is not finite, or too large for the half precision of
                ``out``.
        """
        weights, offsets = self.standardization.raw(self.mean)
        written: HeadLayer = write_linear(out, weights, offsets if self.has_bias else None, self.mean)
        return written

    @outside_inference_mode
    def clone(self) -> Self:
        """Return a copy that shares no memory with this one."""
        return copy.deepcopy(self._successor())

    def __copy__(self) -> Self:
        """Return a copy for ``copy.copy``: matrices are shared until one of the two changes, which leaves the other.

        A shallow copy of another module shares its dictionary of buffers, so that an update of the copy would give this
        posterior the new mean and covariance, but not the counts and names that belong to them.
        """
        return self._successor()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the posterior to one safetensors file with a checksum; atomic, and without pickle.

        Raises:
            ValueError, TypeError: the posterior holds NaN, infinity or half precision, which ``load`` does not accept.
            NotPSDError: other code has changed the covariance to one that has no inverse.
        """
        check_tensors({"mean": MEAN}, {"mean": self.mean})
        for name, buffer in self.named_buffers():
            check_finite(name, buffer)
        precision = self.precision
        check_finite("precision", precision)
        write_file(path, {**dict(self.named_buffers()), "precision": precision}, self.get_extra_state())

    @classmethod
    @outside_inference_mode
    def load(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device | None = None,
    ) -> Self:
        """Read a saved posterior.

        Args:
            path: a file that ``save`` wrote.
            device: of the posterior, the CPU by default.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: the file is damaged, holds no posterior, or has another version of the format.
        """
        device = None if device is None else check_device("device", device)
        tensors, attributes = read_file(path)
        try:
            mean = tensors["mean"]
            weight, bias = (mean[:, :-1], mean[:, -1]) if attributes["has_bias"] else (mean, None)
            posterior = cls(weight, attributes["prior_precision"], attributes["curvature"], bias=bias)
            posterior.load_state_dict({**tensors, EXTRA_STATE: attributes})
        except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise StorageError(f"{os.fspath(path)} does not hold a posterior: {error}") from error
        return posterior.to(device)

    # Attributes

    @property
    def precision(self) -> Tensor:  # [D, D]
        """Inverse of the covariance. Updates record their rows, and the next read adds them."""
        return self._precision.value(self.covariance)

    @property
    def standardization(self) -> Standardization:
        """Centre and scale of the inputs, and whether there is a bias, as a view of the buffers."""
        return Standardization(self.centre, self.scale, self.has_bias)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.mean.shape[0]

    @property
    def num_features(self) -> int:
        """D, without the bias."""
        return self.centre.shape[0]

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of their numbers, or None if they have no names."""
        return self._class_names

    @class_names.setter
    def class_names(self, names: Iterable[str] | None) -> None:
        self._class_names = check_class_names(names, self.num_classes)

    def extra_repr(self) -> str:
        """Sizes, settings and counts, for ``print``."""
        parts = [
            f"{self.num_features} features",
            f"{self.num_classes} classes" + first_names(self._class_names),
            f"prior precision {self.prior_precision:g}",
            f"{self.curvature} curvature",
            "with bias" if self.has_bias else "no bias",
            f"fitted to {self.fitted_rows} rows" if self.fitted else "not fitted",
            f"{self.absorbed_labels} labels absorbed",
            f"{str(self.mean.dtype).removeprefix('torch.')} on {self.mean.device}",
        ]
        return ", ".join(parts)

    # Hooks that torch calls

    def get_extra_state(self) -> dict[str, Any]:
        """Attributes that belong to the state but are not tensors (called by ``state_dict``)."""
        return {name: getattr(self, name) for name in ATTRIBUTES}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_extra_state`` returned (called by ``load_state_dict``)."""
        self._keep(**self._attributes_of(state))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}precision"] = self.precision

    @outside_inference_mode
    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load all of a state or, unlike torch's own method, nothing of it.

        A posterior on its own raises a typed error. One that is part of another module reports missing names, unknown
        names and invalid values as torch does.
        """
        state = {name.removeprefix(prefix): state_dict[name] for name in state_dict if name.startswith(prefix)}
        # For the precision only the shape is checked, which is that of the covariance.
        scale = self.centre if getattr(state.get("scale"), "shape", None) == self.centre.shape else self.mean[0, 0]
        buffers = {**dict(self.named_buffers()), "scale": scale}  # of one scale, or of one for each column
        tensors = {**buffers, "precision": self.covariance}
        own = (*tensors, EXTRA_STATE)
        missing = [name for name in own if name not in state]
        if missing and (prefix or not state):
            missing_keys += [prefix + name for name in missing]
            unexpected_keys += [prefix + name for name in state if name not in own]
            return
        try:
            check_state({name: state[name] for name in own} if prefix else state, tensors, self.has_bias)
        except (TypeError, ValueError) as error:
            if not prefix:
                raise
            error_msgs.append(f"{prefix.rstrip('.')}: {error}")
            return
        # torch writes into existing buffers, one after another: into copies, which this posterior keeps if all is well.
        # The precision is not a buffer, so torch must not see its entry.
        loaded = self._successor()
        loaded._buffers.update((name, buffer.clone()) for name, buffer in buffers.items())
        known = {name: value for name, value in state_dict.items() if name != f"{prefix}precision"}
        errors: list[str] = []
        super(LastLayerLaplace, loaded)._load_from_state_dict(
            known, prefix, local_metadata, strict, missing_keys, unexpected_keys, errors
        )
        error_msgs += errors
        if not errors:
            precision = state["precision"].detach().to(loaded.covariance, copy=True)
            attributes = self._attributes_of(loaded.get_extra_state())
            self._keep(**loaded._buffers, **attributes, _precision=PendingPrecision(loaded.covariance, precision))

    @outside_inference_mode
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        moved = self._successor()
        moved._buffers.update(self._buffers)  # not copies, which ``fn`` may return as they are
        super(LastLayerLaplace, moved)._apply(fn, recurse)  # type: ignore[no-untyped-call]
        precision = self._precision.moved(fn, self.covariance, moved.covariance)
        return self._keep(**moved._buffers, _precision=precision)

    # Parts of the methods above

    def _tiles(self, features: Tensor) -> Iterator[Tensor]:
        """Standardised features [n, D], a tile at a time."""
        return (self.standardization.standardized(features[rows]) for rows in row_tiles(features.shape[0]))

    def _with_precision(
        self,
        precision: Tensor,  # [D, D] float64
        covariance: Tensor | None = None,  # [D, D] float64
    ) -> dict[str, Any]:
        """A precision and its inverse, which is computed if it is not given, for ``_keep``."""
        stored = precision.to(self.mean.dtype)
        check_overflow("features", stored)
        covariance = (inverse(precision) if covariance is None else covariance).to(self.mean.dtype)
        return {"covariance": covariance, "_precision": PendingPrecision(covariance, stored)}

    def _attributes_of(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes in an extra state, for ``_keep``."""
        attributes = {name: state[name] for name in ATTRIBUTES}
        names = check_class_names(attributes.pop("class_names"), self.num_classes)
        return {**attributes, "_class_names": names}

    def _keep(self, **changes: Any) -> Self:
        """Set buffers and attributes in one step, so that an exception at any time leaves all or none of them changed.

        Every method that changes the posterior computes first and ends with this. Torch has the buffers in a dictionary
        that is an attribute as well, so one change of ``__dict__`` sets everything.
        """
        buffers = {name: changes.pop(name, buffer) for name, buffer in self._buffers.items()}
        # Changed and returned in one line, since Ctrl-C may come between two.
        return (self.__dict__.update(changes, _buffers=buffers), self)[1]

    @outside_inference_mode
    def _successor(self) -> Self:
        """Return a copy that shares the matrices of this posterior; an update of the copy makes new ones.

        No method changes a matrix in place, so a change of one posterior does not affect the other. A ``clone`` copies
        the matrices, which takes as long as absorbing ten labels.
        """
        copied = type(self).__new__(type(self))
        for name, value in self.__dict__.items():
            copied.__dict__[name] = value.copy() if isinstance(value, (dict, list, set, PendingPrecision)) else value
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.dim() < 2:
                copied._buffers[name] = buffer.clone()
        return copied


def condition_on_rows(
    posterior: LastLayerLaplace,
    name: str,
    rows: Tensor,  # [n]
    features: Tensor,  # [n, D]
    targets: Tensor,  # [n]
    step: str,
    gamma: float | Tensor,  # [] or [n]
) -> LastLayerLaplace:
    """``LastLayerLaplace.condition_on`` for ``rows`` of the argument ``name``, by which errors call them."""
    changes = posterior._absorbed(features, targets, step, gamma, name, rows)
    return posterior._successor()._keep(**changes)


def _uneven(features: Tensor, standardize: Standardize) -> str:
    """The text of a warning about features that need a scale for each column, or an empty string."""
    return "" if standardize == COLUMNS else uneven_columns(features.detach())


def _start_of(start: object, data: LabelledFeatures) -> tuple[Tensor, Tensor]:  # [C, D], [C]
    """Weights and offsets of ``start`` for raw features, or a typed error unless it fits the data."""
    if not isinstance(start, LastLayerLaplace):
        raise TypeError(f"start must be a LastLayerLaplace, got {type(start).__name__}")
    n_features, n_classes = data.features.shape[1], data.num_classes
    if start.num_features != n_features or start.num_classes > n_classes:
        raise ValueError(
            f"start must have {n_features} features and at most {n_classes} classes, got {start.num_features} and "
            f"{start.num_classes}"
        )
    if start.mean.device != data.features.device:
        raise ValueError(f"start must be on {data.features.device} like features, got {start.mean.device}")
    check_finite("start", start.mean)
    missing = n_classes - start.num_classes
    mean = torch.cat([start.mean, start.mean.mean(0, keepdim=True).expand(missing, -1)])
    weights, offsets = start.standardization.raw(mean)
    return weights.to(data.features.dtype), offsets.to(data.features.dtype)


def check_posterior(posterior: object) -> None:
    """Raise a typed error unless ``posterior`` is a fitted LastLayerLaplace in float32 or float64."""
    if not isinstance(posterior, LastLayerLaplace):
        raise TypeError(f"posterior must be a LastLayerLaplace, got {type(posterior).__name__}")
    if posterior.mean.dtype not in COMPUTE_DTYPES:
        raise TypeError(f"posterior must be float32 or float64, got {posterior.mean.dtype}")
    require_fitted(posterior.fitted)
