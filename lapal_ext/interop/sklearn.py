"""A scikit-learn classifier that absorbs further labels in closed form."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from lapal_ext.entries import entry
from lapal_ext.likelihood import mean_field
from lapal_ext.posterior.last_layer_laplace import UPDATE_STEPS, LastLayerLaplace
from lapal_ext.posterior.map_fit import TOLERANCE
from lapal_ext.posterior.standardization import Standardize
from lapal_ext.rules import check_link
from lapal_ext.validation.scalars import check_choice, check_number

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.preprocessing import LabelEncoder
    from sklearn.utils.class_weight import compute_class_weight
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise ImportError(
        f'lapal_ext.interop.sklearn needs scikit-learn 1.6 or newer: pip install "lapal_ext[sklearn]" ({error})'
    ) from error

DTYPES = (np.float64, np.float32)  # other dtypes, such as integers, are converted to the first
# Where scikit-learn refuses weights that are all zero, this allows them: a later ``partial_fit`` takes them.
_ALL_ZERO = "allow_all_zero_weights"
_ALLOWED = {_ALL_ZERO: True} if _ALL_ZERO in inspect.signature(_check_sample_weight).parameters else {}


@entry
class LaplaceClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Multinomial logistic regression with a Gaussian posterior, which absorbs further labels without a refit.

    ``fit`` is ``LastLayerLaplace.fit_map``; ``partial_fit`` is ``LastLayerLaplace.update``, which costs O(D^2) per row
    and depends on the order of the rows. The rows of X are meant to be last-layer features of a network.

    X is converted as elsewhere in scikit-learn: float32 is kept, everything else becomes float64. After the first fit,
    X is converted to the dtype of that fit.

    Args:
        prior_precision: lambda > 0, of all weights and the bias.
        curvature: ``categorical`` or ``gaussian``.
        step: for ``partial_fit``: ``line_search``, ``newton`` or ``joint``, see ``LastLayerLaplace.update``.
        gamma: for ``partial_fit``: trust in its labels, >= 0; 1 is Bayes.
        fit_bias: whether there is a bias.
        standardize: centre X and scale it by one number, so that ``prior_precision`` means the same on every data set;
            ``columns`` scales each column by itself, for columns in different units.
        class_weight: by which the weight of every row of a class is multiplied: a dictionary of numbers >= 0,
            ``balanced``, or None for one. ``balanced`` gives all classes the same total weight, where rows count as
            often as ``sample_weight`` says. It is for ``fit`` only, since it needs the counts of all classes.
        tolerance: of the fit, see ``LastLayerLaplace.fit_map``.
        link: ``mean_field``, probabilities averaged over the posterior, or ``plugin``, those of its mean.

    Attributes:
        classes_: labels of the classes, sorted.
        posterior_: the fitted ``LastLayerLaplace``, with classes numbered as in ``classes_``.
        n_features_in_: D.
        feature_names_in_: names of the columns, if X has names that are all strings.

    Example:
        >>> classifier = LaplaceClassifier().fit(features, names)
        >>> classifier.partial_fit(new_features, new_names).predict_proba(pool)
    """

    classes_: NDArray[Any]
    posterior_: LastLayerLaplace

    def __init__(
        self,
        *,
        prior_precision: float = 10.0,
        curvature: str = "categorical",
        step: str = "line_search",
        gamma: float = 1.0,
        fit_bias: bool = True,
        standardize: Standardize = True,
        link: str = "mean_field",
        class_weight: Mapping[Any, float] | str | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.prior_precision = prior_precision
        self.curvature = curvature
        self.step = step
        self.gamma = gamma
        self.fit_bias = fit_bias
        self.standardize = standardize
        self.link = link
        self.class_weight = class_weight
        self.tolerance = tolerance

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit the classifier from scratch.

        Args:
            X: features [N, D], finite; no sparse matrix.
            y: labels [N], all strings, all booleans or all whole numbers (also as floats), of at least two classes.
            sample_weight: how often each row counts, >= 0, [N], with one row above 0; None is one.

        Returns:
            self.

        Raises:
            ValueError: an argument is invalid.
        """
        with self._all_or_nothing():
            features, y = self._check_labelled(X, y, dtype=DTYPES, reset=True)
            encoder = LabelEncoder()
            labels = encoder.fit_transform(y)
            weights = row_weights(self.class_weight, features, labels, encoder.classes_, sample_weight)
            self._fit(features, labels, encoder.classes_, "y", weights)
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """Absorb labels, in order; an error changes nothing. The first call of an unfitted classifier is a fit.

        A later call may bring a class that is new: it is added (``LastLayerLaplace.add_class``) before its first label.

        Args:
            X: features [N, D], finite; no sparse matrix.
            y: labels [N] of the kind of the first fit: strings, booleans or whole numbers.
            classes: labels of all classes, also of those that are not in y. They are required in the first call of an
                unfitted classifier. A later call may repeat them, with new ones among them; without it the labels of y
                say which classes are new.
            sample_weight: >= 0, [N]; None is one. Zero leaves the row out, but a class that is new in ``y`` is added
                all the same; with zeros only, nothing else changes. Another weight is trust in the label, by which
                ``gamma`` is multiplied: it scales how far the label moves the mean, not how much the covariance
                shrinks, so that weight 3 is not three copies of the row. The first call of an unfitted classifier is a
                fit, where weights count rows, and needs one row above 0.

        Returns:
            self.

        Raises:
            ValueError: an argument is invalid, for example a label that is not one of ``classes``.
        """
        with self._all_or_nothing():
            self._partial_fit(X, y, classes, sample_weight)
        return self

    def decision_function(self, X: Any) -> NDArray[Any]:
        """Logits whose softmax is ``predict_proba``.

        Args:
            X: features [N, D].

        Returns:
            [N, C]; with two classes [N], the second logit minus the first.
        """
        logits = self._logits(X)
        scores: NDArray[Any] = logits.numpy() if len(self.classes_) > 2 else (logits[:, 1] - logits[:, 0]).numpy()
        return scores

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Probabilities of the classes.

        Args:
            X: features [N, D].

        Returns:
            [N, C], in the order of ``classes_``; rows sum to one.
        """
        probabilities: NDArray[Any] = self._logits(X).softmax(1).numpy()
        return probabilities

    def predict_log_proba(self, X: Any) -> NDArray[Any]:
        """Logarithms of ``predict_proba``, finite where a probability is too small for its dtype.

        Args:
            X: features [N, D].

        Returns:
            [N, C], in the order of ``classes_``.
        """
        log_probabilities: NDArray[Any] = self._logits(X).log_softmax(1).numpy()
        return log_probabilities

    def predict(self, X: Any) -> NDArray[Any]:
        """Likeliest class of every row.

        Args:
            X: features [N, D].

        Returns:
            [N], of ``classes_``.
        """
        winners = self._logits(X).argmax(1).numpy()  # before classes_, which an unfitted classifier does not have
        predictions: NDArray[Any] = self.classes_[winners]
        return predictions

    def _logits(self, X: Any) -> Tensor:  # [N, C]
        """Logits after the link."""
        check_is_fitted(self)
        check_parameters(self)
        features = supported_layout(validate_data(self, X, dtype=self.posterior_.mean.numpy().dtype, reset=False))
        link = check_link(self.link)
        if not link.uses_variance:
            return self.posterior_.predict_logits(features)
        return mean_field(*self.posterior_.predict_latent(features), link.kappa)

    def _partial_fit(self, X: Any, y: Any, classes: Any, sample_weight: Any) -> None:
        first = not hasattr(self, "posterior_")
        if classes is None and first:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        if isinstance(self.class_weight, str):
            raise ValueError(f"class_weight must be a dictionary or None for partial_fit, got {self.class_weight!r}")
        dtype = DTYPES if first else self.posterior_.mean.numpy().dtype
        features, y = self._check_labelled(X, y, dtype=dtype, reset=first)
        if not first:
            _check_kind("y", y, self.classes_)
        if classes is None:
            new = y[~np.isin(y, self.classes_)]
            classes = np.concatenate([self.classes_, new]) if len(new) else self.classes_  # which keeps its dtype
        encoder = LabelEncoder().fit(_checked_classes(classes))
        if not first:
            _check_kind("classes", encoder.classes_, self.classes_)
        else:
            _check_kind("y", y, encoder.classes_)
        if not first and not np.isin(self.classes_, encoder.classes_).all():
            raise ValueError(
                f"classes must hold {self.classes_.tolist()} as in the first fit, got {encoder.classes_.tolist()}"
            )
        unseen = y[~np.isin(y, encoder.classes_)]
        if len(unseen) > 0:  # the encoder would cut a text to the length of the longest class
            raise ValueError(f"y contains previously unseen labels: {unseen.tolist()[0]!r} is not one of classes")
        labels = encoder.transform(y)
        weights = row_weights(self.class_weight, features, labels, encoder.classes_, sample_weight)
        if first:
            self._fit(features, labels, encoder.classes_, "classes", weights)
            return
        check_parameters(self)
        gamma: float | NDArray[Any] = self.gamma
        if weights is not None:
            counted = weights > 0.0  # with trust zero a row would still shrink the covariance
            features, labels, gamma = features[counted], labels[counted], self.gamma * weights[counted]
        posterior = with_classes(self.posterior_, self.classes_, encoder.classes_)
        self.posterior_ = posterior.condition_on(features, labels, self.step, gamma)
        self.classes_ = encoder.classes_

    def _fit(
        self,
        features: NDArray[Any],
        labels: NDArray[Any],
        classes: NDArray[Any],
        name: str,
        weights: NDArray[Any] | None,
    ) -> None:
        check_parameters(self)
        if len(classes) < 2:
            raise ValueError(f"{name} must hold at least two classes, got one class: {classes.tolist()[0]!r}")
        if weights is not None and not weights.any():
            source = "sample_weight" if self.class_weight is None else "sample_weight times class_weight"
            raise ValueError(f"{source} must be above zero for at least one row, got zeros")
        self.posterior_ = fit_posterior(self, features, labels, len(classes), weights)
        self.classes_ = classes

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Restore the attributes if the body raises: scikit-learn sets those of the columns of X before the fit.

        The posterior need not be copied: an update that raises does not change it, and a fit makes a new one.
        """
        before = dict(vars(self))
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise

    def _check_labelled(self, X: Any, y: Any, *, dtype: Any, reset: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        features, y = validate_data(self, X, y, dtype=dtype, reset=reset)
        check_classification_targets(y)
        return supported_layout(features), column_or_1d(y)


def check_parameters(classifier: LaplaceClassifier) -> None:
    """Raise a typed error about the parameters that only later calls use; ``fit_map`` checks the others."""
    check_choice("step", classifier.step, UPDATE_STEPS)
    check_number("gamma", classifier.gamma, at_least=0.0)
    check_link(classifier.link)  # "mc" would give other probabilities at every call


def fit_posterior(
    classifier: LaplaceClassifier,
    features: NDArray[Any] | Tensor,  # [N, D]
    labels: NDArray[Any],  # [N], numbers of classes
    n_classes: int,
    weights: NDArray[Any] | None,  # [N]
    standardize: Standardize | None = None,
) -> LastLayerLaplace:
    """``fit_map`` with the parameters of the classifier; ``standardize`` takes the place of its own."""
    return LastLayerLaplace.fit_map(
        features,
        labels,
        n_classes,
        classifier.prior_precision,
        classifier.curvature,
        classifier.fit_bias,
        classifier.standardize if standardize is None else standardize,
        weights=weights,
        tolerance=classifier.tolerance,
    )


def with_classes(
    posterior: LastLayerLaplace,
    known: NDArray[Any],  # labels of its classes, sorted
    classes: NDArray[Any],  # sorted, with all of ``known`` among them
) -> LastLayerLaplace:
    """The posterior with new classes, all in the order of ``classes``; the one that is given is not modified."""
    if len(classes) == len(known):
        return posterior
    extended = posterior.clone()
    old = [int(place) for place in np.searchsorted(classes, known)]
    added = [place for place in range(len(classes)) if place not in set(old)]
    for _ in added:
        extended.add_class()
    extended.mean = extended.mean[np.argsort([*old, *added])]
    return extended


def row_weights(
    class_weight: Mapping[Any, float] | str | None,
    features: NDArray[Any],  # [N, D]
    labels: NDArray[Any],  # [N], numbers of classes
    classes: NDArray[Any],  # [C]
    sample_weight: Any,
) -> NDArray[Any] | None:  # [N]
    """The weight of every row, or None if all are one."""
    if sample_weight is None and class_weight is None:
        return None
    check_class_weight(class_weight)
    weights: NDArray[Any] = _check_sample_weight(
        sample_weight, features, dtype=features.dtype, ensure_non_negative=True, **_ALLOWED
    )
    if isinstance(class_weight, str) and class_weight == "balanced":
        weights = weights * _balanced(labels, len(classes), weights)[labels].astype(weights.dtype)
    elif class_weight is not None:
        of_classes = compute_class_weight(class_weight, classes=classes, y=classes[labels])
        weights = weights * of_classes[labels].astype(weights.dtype)
    return weights


def check_class_weight(class_weight: Mapping[Any, float] | str | None) -> None:
    """Raise a typed error for an unknown text, or a weight below zero or not finite: scikit-learn takes any number."""
    for label, weight in class_weight.items() if isinstance(class_weight, Mapping) else ():
        check_number(f"class_weight[{label!r}]", weight, at_least=0.0)
    if isinstance(class_weight, str):
        check_choice("class_weight", class_weight, ("balanced",))


def _check_kind(name: str, labels: NDArray[Any], known: NDArray[Any]) -> None:
    """Raise ValueError unless strings meet strings, booleans booleans and numbers numbers.

    NumPy would make integers of booleans that it joins with numbers.
    """
    first, example = labels[:1].tolist()[0], known[:1].tolist()[0]
    if any(isinstance(first, kind) != isinstance(example, kind) for kind in (str, bool)):
        raise ValueError(f"{name} must hold labels of the kind of {example!r}, got {first!r}")


def _checked_classes(classes: Any) -> NDArray[Any]:  # [C]
    """The classes of ``partial_fit``, or ValueError if a missing value is among them, or what is no label."""
    kind = type_of_target(classes, input_name="classes")
    if kind not in ("binary", "multiclass"):
        raise ValueError(f"classes must hold labels of one sortable type, without missing values, got {kind} values")
    labels: NDArray[Any] = column_or_1d(classes)
    return labels


def _balanced(
    labels: NDArray[Any],  # [N]
    n_classes: int,
    weights: NDArray[Any],  # [N]
) -> NDArray[Any]:  # [C]
    """Weights of classes with which all have the same total weight, as if weight 2 were two rows and 0 were none.

    scikit-learn's own function does not count ``sample_weight`` in all its versions that this module supports.
    """
    totals = np.bincount(labels, weights, n_classes)
    present = totals > 0.0
    of_classes: NDArray[Any] = np.ones(n_classes)
    of_classes[present] = totals.sum() / (present.sum() * totals[present])
    return of_classes


def supported_layout(features: NDArray[Any]) -> NDArray[Any]:  # [N, D]
    """The same values in a layout that torch supports: no negative strides, no field of a structured array."""
    if any(step < 0 or step % features.itemsize for step in features.strides):
        return features.copy()  # numpy.ascontiguousarray leaves a single row as it is
    return features
