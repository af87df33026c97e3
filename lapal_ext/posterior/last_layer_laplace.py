"""The Gaussian posterior over a last layer: its state, its updates and its predictions."""

from typing import NamedTuple

import torch
from torch import Tensor

from lapal_ext import ops
from lapal_ext.likelihood import LINKS, MEAN_FIELD_FACTOR, STEPS, curvature_weight
from lapal_ext.posterior import precision as fitting
from lapal_ext.posterior.estimation import EstimatedLinear
from lapal_ext.posterior.map_fit import map_weights_from
from lapal_ext.posterior.updating import absorb, check_variance
from lapal_ext.validation.arrays import Array
from lapal_ext.validation.tensors import (
    check_choice,
    check_generator,
    check_integer,
    check_number,
    check_overflow,
)

UPDATE_STEPS = (*STEPS, "joint")
_JOINT = UPDATE_STEPS[-1]
_DEFAULT_SAMPLES = 1000


class LatentPrediction(NamedTuple):
    """Distribution of the logits of N rows: class k of row n is Normal(logits[n, k], variance[n])."""

    logits: Tensor  # [N, C]
    variance: Tensor  # [N]


class LastLayerLaplace(EstimatedLinear):
    """Gaussian posterior over the weights of a linear softmax layer, with one covariance for all classes.

    Class row k of the weights is Normal(mean_k, Sigma), Sigma = (lambda I + sum_n s_n phi_n phi_n^T)^-1 with s = 1
    (``gaussian``) or p_max (1 - p_max) (``categorical``). A label is absorbed in closed form instead of by retraining.

    A bias is one more constant feature: ``mean`` is then [C, D + 1] and ``covariance`` [D + 1, D + 1] while inputs stay
    [N, D], and updates move it like any other weight. ``centre`` and ``scale`` standardise inputs inside every method.

    Every method takes NumPy arrays for tensors, of the dtype of ``mean`` where they are features: they are seen as
    tensors and not converted. A model that is fitted to float64, which is what NumPy makes, is one in float64.

    It is a module that may stand where the layer stood: called on features [..., D], it gives the layer's logits.

    Source: Huseljic et al., "Efficient Bayesian Updates for Deep Active Learning via Laplace Approximations",
    arXiv 2210.06112; bias, standardising, line search and the blocked exact updates are ours.

    Args:
        weight: of the layer, [C, D], float32 or float64; copied.
        prior_precision: lambda > 0.
        curvature: ``categorical`` or ``gaussian``.
        bias: of the layer, [C], or None for a layer without.
        class_names: one per class, distinct, or None.

    Attributes:
        mean: [C, D], or [C, D + 1] with a bias.
        covariance: Sigma, symmetric.
        precision: its inverse, kept beside it.
        centre: subtracted from the features, [D].
        scale: multiplies the centred features, 0-d.
        has_bias: whether the last column of ``mean`` is a bias.
        fitted: whether ``fit`` has been called.
        class_names: C texts, or None; kept by ``clone``, ``save`` and ``state_dict``, and grown by ``add_class``.
    """

    @torch.no_grad()
    def update(
        self,
        features: Array,  # [N, D]
        targets: Array,  # [N]
        step: str = "line_search",
        gamma: float = 1.0,
    ) -> "LastLayerLaplace":
        """Absorb labels in place, in order, all or nothing.

        Args:
            features: [N, D].
            targets: labels in [0, C), [N].
            step: ``line_search`` (needs no tuning) or ``newton`` (the paper's), see ``likelihood.step_length``, absorb
                one label after another in closed form; ``joint`` finds the mode of all of them together, by a small
                fit, and is nearer to a refit the more labels come at once. Its cost is that of a few D^3.
            gamma: trust in the new labels, >= 0; 1 is Bayes.

        Returns:
            self.

        Raises:
            ValueError, TypeError: an argument does not fit, or overflows; the posterior is as it was.
            NotFittedError: ``fit`` has not been called.
            NotPSDError: the covariance is no longer positive semi-definite, or its dtype cannot hold what the labels
                leave of it (features of norm 1e4 and more, not standardised, in float32); the posterior is as it was.
        """
        self.require_fitted()
        features = self.check_features(features)
        labels = self.check_targets(targets, features.shape[0])
        check_choice("step", step, UPDATE_STEPS)
        gamma = check_number("gamma", gamma, at_least=0.0)
        inner = self.inner_features(features)
        if step == _JOINT:
            if gamma > 0.0 and features.shape[0] > 0:
                return self._absorb_jointly(inner, labels, gamma)
            step = STEPS[0]  # where no label moves the mean, all steps are the same
        mean, covariance, weights = absorb(self.mean, self.covariance, inner, labels, step, gamma, self.curvature)
        self.set_updated(mean, covariance, inner, weights)
        return self

    def _absorb_jointly(
        self,
        inner: Tensor,  # [N, D]
        labels: Tensor,  # [N]
        gamma: float,
    ) -> "LastLayerLaplace":
        weight = map_weights_from(self.mean, self.covariance, inner, labels, gamma)
        mean, x = weight.to(self.mean.dtype), inner.double()
        check_overflow("features", mean)
        curvature = curvature_weight(x @ weight.T, self.curvature)
        self.set_precision(fitting.add_observations(self.precision.double(), x, curvature))
        self.mean = mean
        return self

    def condition_on(
        self,
        features: Array,  # [N, D]
        targets: Array,  # [N]
        step: str = "line_search",
        gamma: float = 1.0,
    ) -> "LastLayerLaplace":
        """Return a new posterior that has absorbed the labels; this one stays as it is. See ``update``.

        It costs what ``update`` does: the two share the precision, as the new one's is made when it is first read.
        """
        return self._successor().update(features, targets, step, gamma)

    @torch.no_grad()
    def predict_latent(
        self,
        features: Array,  # [N, D]
    ) -> LatentPrediction:
        """Mean and variance of the logits: z = W phi, v = phi^T Sigma phi (one for all classes).

        Raises:
            ValueError, TypeError: ``features`` does not fit, or overflows.
            NotFittedError: ``fit`` has not been called.
            NotPSDError: a variance is below zero by more than rounding, or is nothing but rounding.
        """
        self.require_fitted()
        features = self.check_features(features)
        logits = features.new_empty(features.shape[0], self.num_classes)
        variance = features.new_empty(features.shape[0])
        start = 0
        for tile in fitting.tiles(features):
            rows, inner = slice(start, start + tile.shape[0]), self.inner_features(tile)
            torch.mm(inner, self.mean.T, out=logits[rows])
            variance[rows] = ops.predictive_variance(inner, self.covariance)
            check_variance(variance[rows], inner, self.covariance, "features", start)
            start = rows.stop
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
            link: ``mean_field`` softmax(z / sqrt(1 + pi v / 8)), which is also the probit link here; ``plugin``
                softmax(z), which needs no covariance; ``mc`` the mean softmax over samples of the logits.
            n_samples: of ``mc`` alone, 1000 by default.
            generator: of ``mc`` alone.

        Returns:
            [N, C], rows sum to one.
        """
        check_choice("link", link, LINKS)
        check_generator("generator", generator, self.mean.device)
        if link != "mc":
            if n_samples is not None:
                raise ValueError(f"n_samples is for link='mc', got it with link={link!r}")
            if link == "plugin":
                return ops.predictive(self.predict_logits(features), None, 0.0)
            return ops.predictive(*self.predict_latent(features), MEAN_FIELD_FACTOR)
        count = check_integer("n_samples", _DEFAULT_SAMPLES if n_samples is None else n_samples, at_least=1)
        latent = self.predict_latent(features)
        shape = (count, self.num_classes)
        noise = torch.randn(shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
        return ops.mc_predictive(*latent, noise)[0]
