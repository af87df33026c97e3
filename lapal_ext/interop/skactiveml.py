"""A query strategy for scikit-activeml around ``select_batch``."""

import warnings
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lapal_ext.acquisition.custom import Acquisition
from lapal_ext.acquisition.registry import check_acquisition, spec_of
from lapal_ext.entries import entry
from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.selection.label_sources import AUTO
from lapal_ext.selection.select_batch import select_batch
from lapal_ext.selection.selection_result import SelectionResult
from lapal_ext.validation.scalars import check_choice

try:
    from skactiveml.base import SingleAnnotatorPoolQueryStrategy
    from skactiveml.classifier import SklearnClassifier
    from skactiveml.utils import MISSING_LABEL, ExtLabelEncoder, check_equal_missing_label, check_type, is_labeled
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise ImportError(
        f'lapal_ext.interop.skactiveml needs scikit-activeml: pip install "lapal_ext[skactiveml]" ({error})'
    ) from error

from lapal_ext.interop.sklearn import (
    DTYPES,
    LaplaceClassifier,
    check_class_weight,
    check_parameters,
    fit_posterior,
    row_weights,
    supported_layout,
    with_classes,
)


@entry
class LaplaceQueryStrategy(SingleAnnotatorPoolQueryStrategy):  # type: ignore[misc]  # scikit-activeml has no types
    """``select_batch`` for scikit-activeml.

    Args:
        acquisition: as in ``select_batch``: ``uherding``, ``maxherding``, ``margin``, ``entropy``, ``least_confident``,
            ``variance``, ``gradient_norm``, ``bald``, ``badge``, ``bait``, ``bait_forward_backward``, ``typiclust``,
            ``coreset``, ``probcover``, ``power_margin``, ``random``, or a callable (posterior, pool) -> utilities.
        targets: ``predicted`` absorbs every pick with its predicted label before the next pick; None picks the batch at
            once under the current model; ``auto`` is what suits the acquisition, as in ``select_batch``.
        link: the predictive that the acquisition uses, ``plugin`` or ``mean_field``.
        missing_label: the value in y for a label that is not known.
        random_state: for the acquisitions that draw: an int, a ``numpy.random.RandomState`` or None.

    Example:
        >>> classifier = SklearnClassifier(LaplaceClassifier(), classes=np.unique(y_true))
        >>> strategy = LaplaceQueryStrategy(random_state=0)
        >>> picks = strategy.query(X, y, classifier, batch_size=10)
        >>> y[picks] = y_true[picks]
    """

    def __init__(
        self,
        acquisition: str | Acquisition = "uherding",
        targets: str | None = AUTO,
        link: str = "plugin",
        missing_label: Any = MISSING_LABEL,
        random_state: Any = None,
    ) -> None:
        super().__init__(missing_label=missing_label, random_state=random_state)
        self.acquisition = acquisition
        self.targets = targets
        self.link = link

    def query(
        self,
        X: Any,
        y: Any,
        clf: Any,
        fit_clf: bool = True,
        candidates: Any = None,
        batch_size: int = 1,
        return_utilities: bool = False,
    ) -> NDArray[np.int64] | tuple[NDArray[np.int64], NDArray[Any]]:
        """Choose the samples to label next.

        The model has all of ``clf.classes``, also those without a label. Labels of ``y`` count by ``class_weight``;
        ``gamma`` is for absorbed picks only. While they are of one class at most, all of X standardises the features.

        Without any label the model is its prior, and every sample is equally uncertain. ``uherding`` then covers the
        samples as ``maxherding`` does; utilities do not rank them, and choose the lowest indices.

        Args:
            X: features of all samples [N, D], labelled or not.
            y: labels [N], each one of the classes of ``clf`` if it names them, ``missing_label`` where there is none.
            clf: a ``SklearnClassifier`` around a ``LaplaceClassifier``, whose ``step`` and ``gamma`` are used to absorb
                the picks; not modified. With ``step="joint"``, which solves for many labels at once, picks are absorbed
                by ``line_search``, since each brings one label. Its ``classes`` are required while y has labels of
                fewer than two classes. Its ``cost_matrix`` is not used.
            fit_clf: whether to fit the model of ``clf`` to the labels first, over all of its ``classes``; if not,
                ``clf`` must be fitted. scikit-activeml fits it only to the classes that have a label; the others are
                then added by ``LastLayerLaplace.add_class``, so that earlier labels are no evidence against them.
            candidates: samples to choose from: None for all without a label, their indices in [0, N), or their features
                [n_candidates, D], which need not be in X.
            batch_size: samples to choose; more than there are candidates gives a warning.
            return_utilities: whether to return utilities beside the indices.

        Returns:
            Indices int64 [batch_size] in pick order, of X or, where candidates are features, of ``candidates``. With
            ``return_utilities`` also [batch_size, N] or [batch_size, n_candidates]: row t has the utilities at pick t,
            NaN for samples that could not be picked. ``margin``, ``entropy``, ``least_confident``, ``variance``,
            ``gradient_norm``, ``bald``, ``power_margin``, ``random`` and callables score every sample, which takes one
            more evaluation of the pool per pick. The others compare batches or distances, not single samples: their row
            t only has the utility of pick t.

        Raises:
            TypeError, ValueError: an argument or a parameter is invalid.
            NotFittedError: ``fit_clf`` is False and ``clf`` is not fitted.
        """
        _check_candidates(candidates, len(X) if hasattr(X, "__len__") else 0)
        X, y, candidates, batch_size, return_utilities = self._validate_data(
            X, y, candidates, batch_size, return_utilities, check_X_dict={"dtype": DTYPES}
        )
        self._check_model(clf, fit_clf)
        if batch_size == 0:
            raise ValueError("candidates must hold at least one sample, got none: every sample has its label")
        self._check_labels(y, clf.classes)
        X = supported_layout(X)
        encoder = ExtLabelEncoder(classes=clf.classes, missing_label=self.missing_label_)
        labels = encoder.fit_transform(y)
        posterior = _fit(clf, X, labels, encoder.classes_) if fit_clf else _fitted(clf)
        dtype = posterior.mean.numpy().dtype
        pool, mapping = self._transform_candidates(candidates, X, y)
        pool, labelled = pool.astype(dtype, copy=False), X[labels >= 0].astype(dtype, copy=False)
        seed = int(self.random_state_.randint(2**31 - 1))
        step, gamma = clf.estimator.step, clf.estimator.gamma
        if step == "joint":  # of many labels at once; a pick has one
            step = "line_search"

        def select(model: LastLayerLaplace, count: int, targets: str | None, exclude: Any = None) -> SelectionResult:
            return select_batch(
                model,
                pool,
                count,
                self.acquisition,
                targets,
                step,
                gamma,
                link=self.link,
                generator=torch.Generator(device="cpu").manual_seed(seed),
                labelled=labelled,
                exclude=exclude,
            )

        result = select(posterior, batch_size, self.targets)
        picks = result.indices.numpy()
        places = np.arange(len(pool)) if mapping is None else mapping
        chosen: NDArray[np.int64] = places[picks]
        if not return_utilities:
            return chosen
        utilities = np.full((batch_size, len(pool) if mapping is None else len(X)), np.nan)
        spec = spec_of(self.acquisition)
        if not spec.scores_every_row:
            utilities[np.arange(batch_size), chosen] = result.utilities.numpy()
            return chosen, utilities
        for number, pick in enumerate(picks):
            scores = select(posterior, len(pool) - number, None, picks[:number])
            utilities[number, places[scores.indices.numpy()]] = scores.utilities.numpy()
            if (spec.batch_targets if self.targets == AUTO else self.targets) is not None:
                sample = pool[[pick]]
                posterior = posterior.condition_on(sample, posterior.predict_logits(sample).argmax(1), step, gamma)
        return chosen, utilities

    def _check_model(self, clf: Any, fit_clf: Any) -> None:
        check_type(fit_clf, "fit_clf", bool)
        check_type(clf, "clf", SklearnClassifier)
        if not isinstance(clf.estimator, LaplaceClassifier):
            raise TypeError(f"clf must wrap a LaplaceClassifier, got {clf.estimator}")
        if clf.include_unlabeled_samples:  # so that its fit makes a class of the missing label
            raise ValueError("clf must have include_unlabeled_samples=False, got True: only known labels are fitted")
        check_equal_missing_label(clf.missing_label, self.missing_label_)
        check_acquisition(self.acquisition, self.link, None)
        if self.targets is not None:
            check_choice("targets", self.targets, (AUTO, "predicted"))

    def _check_labels(self, y: NDArray[Any], classes: Any) -> None:
        """Raise ValueError for a label that is no class, which scikit-activeml would cut to the type of the classes."""
        known = None if classes is None else set(classes)
        for label in y[is_labeled(y, self.missing_label_)].tolist():
            if known is not None and label not in known:
                raise ValueError(f"y must hold classes of clf.classes, got {label!r}")


def _check_candidates(candidates: Any, n_samples: int) -> None:
    """Raise a typed error for indices that scikit-activeml would change.

    It reads a mask as the indices 0 and 1, takes the whole part of other numbers and of texts, and counts negative ones
    from the end.
    """
    if candidates is None:
        return
    given = np.asarray(candidates)
    if given.ndim != 1 or len(given) == 0:
        return  # features, or what scikit-activeml refuses
    if given.dtype.kind == "b":
        raise TypeError("candidates must hold indices, got booleans: of a mask pass numpy.flatnonzero(mask)")
    others = [value for value in given.tolist() if isinstance(value, bool) or not isinstance(value, Integral)]
    if others:
        raise TypeError(f"candidates must hold integers, got {type(others[0]).__name__} {others[0]!r}")
    if given.min() < 0:
        raise ValueError(f"candidates must lie in [0, {n_samples}), one of the samples of X, got {given.min()}")


def _fit(
    clf: SklearnClassifier,
    X: NDArray[Any],  # [N, D]
    labels: NDArray[np.int64],  # [N], -1 where there is none
    classes: NDArray[Any],  # [C]
) -> LastLayerLaplace:
    """Posterior of the classifier's parameters, given the known labels.

    It has all classes of ``clf.classes``, also those without a label. Labels whose class has weight zero do not count.
    Labels of one class do not tell the size of the features: all samples then standardise them, as without any label.

    Raises:
        ValueError: fewer than two classes are known, with ``clf.classes``; or ``class_weight`` has another class.
    """
    classifier: LaplaceClassifier = clf.estimator
    check_parameters(classifier)
    if len(classes) < 2:
        raise ValueError("clf.classes must name at least two classes while y holds labels of fewer")
    class_weight = _numbered(classifier.class_weight, classes.tolist(), complete=clf.classes is not None)
    known = np.flatnonzero(labels >= 0)
    weights = None
    if len(known) > 0:
        weights = row_weights(class_weight, X[known], labels[known], np.arange(len(classes)), None)
    if weights is not None:
        known, weights = known[weights > 0.0], weights[weights > 0.0]
    if len(np.unique(labels[known])) >= 2:
        return fit_posterior(classifier, X[known], labels[known], len(classes), weights)
    prior = LastLayerLaplace.untrained(
        X,
        len(classes),
        classifier.prior_precision,
        classifier.curvature,
        classifier.fit_bias,
        classifier.standardize,
    )
    if len(known) == 0:
        return prior
    features = prior.standardization.standardized(torch.from_numpy(X[known]))[:, : prior.num_features]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about uneven columns, which the prior has given for all of X
        posterior = fit_posterior(classifier, features, labels[known], len(classes), weights, standardize=False)
    posterior.centre, posterior.scale = prior.centre, prior.scale
    return posterior


def _numbered(weights: Any, classes: list[Any], *, complete: bool) -> Any:
    """``class_weight`` by the numbers of classes, not their labels.

    ``complete`` says whether no other class exists; if not, a class that has no label yet is left out.
    """
    check_class_weight(weights)  # by its own labels
    if not isinstance(weights, Mapping):
        return weights
    numbers = {label: number for number, label in enumerate(classes)}
    if complete and (unknown := [label for label in weights if label not in numbers]):
        raise ValueError(f"class_weight must hold classes of clf.classes, got {unknown[0]!r}")
    return {numbers[label]: weight for label, weight in weights.items() if label in numbers}


def _fitted(clf: Any) -> LastLayerLaplace:
    """Posterior of a fitted classifier, with all classes of ``clf.classes``.

    scikit-activeml fits the estimator only to classes that have a label; ``add_class`` adds the others.

    Raises:
        NotFittedError: it is not fitted.
        ValueError: its fit failed, which is only a warning in scikit-activeml.
    """
    check_is_fitted(clf)
    if not clf.is_fitted_:
        raise ValueError("clf must have been fitted to labels of at least two classes, or fit_clf be True")
    fitted: LaplaceClassifier = clf.estimator_
    classes = fitted.classes_ if clf.classes is None else np.union1d(fitted.classes_, clf.classes)
    return with_classes(fitted.posterior_, fitted.classes_, classes)
