"""A scikit-learn classifier that absorbs further labels in closed form."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from lapal_ext.entries import entry
from lapal_ext.likelihood import mean_field
from lapal_ext.posterior.last_layer_laplace import UPDATE_STEPS, LastLayerLaplace
from lapal_ext.posterior.standardization import Standardize
from lapal_ext.rules import check_link
from lapal_ext.validation.scalars import check_choice, check_number

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.preprocessing import LabelEncoder
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise ImportError(
        f'lapal_ext.interop.sklearn needs scikit-learn 1.6 or newer: pip install "lapal_ext[sklearn]" ({error})'
    ) from error

DTYPES = (np.float64, np.float32)  # other dtypes, such as integers, are converted to the first


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
    ) -> None:
        self.prior_precision = prior_precision
        self.curvature = curvature
        self.step = step
        self.gamma = gamma
        self.fit_bias = fit_bias
        self.standardize = standardize
        self.link = link

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the classifier from scratch.

        Args:
            X: features [N, D], finite; no sparse matrix.
            y: labels [N] of any type that can be sorted, of at least two classes.

        Returns:
            self.

        Raises:
            ValueError: an argument is invalid.
        """
        with self._all_or_nothing():
            features, y = self._check_labelled(X, y, dtype=DTYPES, reset=True)
            encoder = LabelEncoder()
            labels = encoder.fit_transform(y)
            self._fit(features, labels, encoder.classes_, "y")
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Absorb labels, in order; an error changes nothing. The first call of an unfitted classifier is a fit.

        Args:
            X: features [N, D], finite; no sparse matrix.
            y: labels [N], each one of the classes.
            classes: labels of all classes, also of those that are not in y. They are required in the first call of an
                unfitted classifier; later calls may repeat them.

        Returns:
            self.

        Raises:
            ValueError: an argument is invalid, for example a label that is not a class.
        """
        with self._all_or_nothing():
            self._partial_fit(X, y, classes)
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
        self._check_parameters()
        features = _supported_layout(validate_data(self, X, dtype=self.posterior_.mean.numpy().dtype, reset=False))
        link = check_link(self.link)
        if not link.uses_variance:
            return self.posterior_.predict_logits(features)
        return mean_field(*self.posterior_.predict_latent(features), link.kappa)

    def _partial_fit(self, X: Any, y: Any, classes: Any) -> None:
        first = not hasattr(self, "posterior_")
        if classes is None and first:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        dtype = DTYPES if first else self.posterior_.mean.numpy().dtype
        features, y = self._check_labelled(X, y, dtype=dtype, reset=first)
        encoder = LabelEncoder().fit(self.classes_ if classes is None else classes)
        if not first and not np.array_equal(encoder.classes_, self.classes_):
            raise ValueError(
                f"classes must be {self.classes_.tolist()} as in the first fit, got {encoder.classes_.tolist()}"
            )
        labels = encoder.transform(y)
        if first:
            self._fit(features, labels, encoder.classes_, "classes")
        else:
            self._check_parameters()
            self.posterior_.update(features, labels, self.step, self.gamma)

    def _fit(self, features: NDArray[Any], labels: NDArray[Any], classes: NDArray[Any], name: str) -> None:
        self._check_parameters()
        if len(classes) < 2:
            raise ValueError(f"{name} must hold at least two classes, got one class: {classes.tolist()[0]!r}")
        self.posterior_ = LastLayerLaplace.fit_map(
            features,
            labels,
            len(classes),
            self.prior_precision,
            self.curvature,
            self.fit_bias,
            self.standardize,
        )
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

    def _check_parameters(self) -> None:
        """Raise a typed error about the parameters that only later calls use; ``fit_map`` checks the others."""
        check_choice("step", self.step, UPDATE_STEPS)
        check_number("gamma", self.gamma, at_least=0.0)
        check_link(self.link)  # "mc" would give other probabilities at every call

    def _check_labelled(self, X: Any, y: Any, *, dtype: Any, reset: bool) -> tuple[NDArray[Any], NDArray[Any]]:
        features, y = validate_data(self, X, y, dtype=dtype, reset=reset)
        check_classification_targets(y)
        return _supported_layout(features), column_or_1d(y)


def _supported_layout(features: NDArray[Any]) -> NDArray[Any]:  # [N, D]
    """The same values in a layout that torch supports: no negative strides, no field of a structured array."""
    if any(step < 0 or step % features.itemsize for step in features.strides):
        return features.copy()  # numpy.ascontiguousarray leaves a single row as it is
    return features
