"""``LaplaceClassifier`` with the real scikit-learn: its own checks, and what they do not cover."""

import pickle
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from lapal_ext import LastLayerLaplace
from lapal_ext.interop.sklearn import LaplaceClassifier
from tests.fuzz.arrays import REFUSED
from tests.problems import Problem, make_problem

NAMES = np.array(["cat", "dog", "eel", "fox"])


def what_cannot_be(estimator: LaplaceClassifier) -> dict[str, str]:
    """The checks of scikit-learn that are expected to fail."""
    if estimator.fit_bias:
        return {}
    return {"check_class_weight_classifiers": "without a bias, no weights give all rows of uncentred data to one class"}


# One check compares fits with weights and with copies of rows to 1e-7, which the default tolerance does not reach.
@parametrize_with_checks(
    [
        LaplaceClassifier(tolerance=0.0),
        LaplaceClassifier(link="plugin", step="newton", curvature="gaussian", tolerance=0.0),
        LaplaceClassifier(fit_bias=False, standardize=False, prior_precision=1.0, tolerance=0.0),
    ],
    expected_failed_checks=what_cannot_be,
)
def test_checks_of_scikit_learn(estimator: LaplaceClassifier, check: Any) -> None:
    check(estimator)


@pytest.fixture
def problem() -> Problem:
    return make_problem()


@pytest.fixture
def data(problem: Problem) -> tuple[NDArray[Any], NDArray[Any]]:
    return problem.pool.numpy(), NAMES[problem.labels.numpy()]


class TestEquivalence:
    @pytest.mark.parametrize("link", ["mean_field", "plugin"])
    def test_fit_is_fit_map(self, problem: Problem, data: Any, link: str) -> None:
        X, y = data
        classifier = LaplaceClassifier(prior_precision=3.0, link=link).fit(X, y)
        posterior = LastLayerLaplace.fit_map(problem.pool, problem.labels, 4, prior_precision=3.0)
        assert torch.equal(classifier.posterior_.covariance, posterior.covariance)
        expected = posterior.predict_proba(problem.eval_features, link)
        probabilities = classifier.predict_proba(problem.eval_features.numpy())
        np.testing.assert_allclose(probabilities, expected.numpy(), rtol=1e-12)
        assert classifier.predict(X).tolist() == NAMES[posterior.predict_logits(problem.pool).argmax(1)].tolist()

    @pytest.mark.parametrize(("step", "gamma"), [("line_search", 1.0), ("newton", 0.3)])
    def test_partial_fit_is_update(self, problem: Problem, data: Any, step: str, gamma: float) -> None:
        X, y = data
        classifier = LaplaceClassifier(step=step, gamma=gamma).fit(X[:20], y[:20])
        assert classifier.partial_fit(X[20:], y[20:]) is classifier
        posterior = LastLayerLaplace.fit_map(problem.pool[:20], problem.labels[:20], 4)
        posterior.update(problem.pool[20:], problem.labels[20:], step, gamma)
        assert torch.equal(classifier.posterior_.mean, posterior.mean)
        assert torch.equal(classifier.posterior_.precision, posterior.precision)

    def test_the_first_partial_fit_accepts_classes_without_labels(self, data: Any) -> None:
        X, y = data
        few = y != "fox"
        classifier = LaplaceClassifier().partial_fit(X[few], y[few], classes=NAMES[::-1])
        assert classifier.classes_.tolist() == NAMES.tolist()
        before = classifier.score(X, y)
        assert classifier.partial_fit(X[~few], y[~few], classes=NAMES).score(X, y) > before
        assert "fox" in classifier.predict(X)

    def test_scores_are_the_log_odds_of_the_probabilities(self, data: Any) -> None:
        X, y = data
        several = LaplaceClassifier().fit(X, y)
        softmax = torch.from_numpy(several.decision_function(X)).softmax(1).numpy()
        np.testing.assert_allclose(several.predict_proba(X), softmax)
        two = LaplaceClassifier().fit(X, y == "cat")
        odds = two.predict_proba(X)
        np.testing.assert_allclose(two.decision_function(X), np.log(odds[:, 1] / odds[:, 0]), atol=1e-12)
        assert ((two.decision_function(X) > 0) == two.predict(X)).all()

    def test_mean_field_is_less_confident_than_plugin(self, data: Any) -> None:
        X, y = data
        averaged, plugin = (
            LaplaceClassifier(link=link).fit(X, y).predict_proba(X) for link in ("mean_field", "plugin")
        )
        assert (averaged.max(1) < plugin.max(1)).all()


class TestTypes:
    @pytest.mark.parametrize(
        "labels",
        [
            NAMES,
            NAMES.astype(object),
            np.array([3, -7, 5, 0]),
            np.array([1.0, 2.0, 9.0, -4.0]),
            np.array([2**40, 1, 2, 3]),
        ],
        ids=["str", "object", "int", "float", "long"],
    )
    def test_labels_keep_their_type(self, problem: Problem, labels: NDArray[Any]) -> None:
        X, y = problem.pool.numpy(), labels[problem.labels.numpy()]
        classifier = LaplaceClassifier().fit(X[:40], y[:40]).partial_fit(X[40:], y[40:])
        assert classifier.classes_.tolist() == sorted(labels.tolist())
        assert classifier.predict(X).dtype == labels.dtype
        assert classifier.score(X, y) > 0.8

    @pytest.mark.parametrize(("given", "kept"), [("f4", "f4"), ("f8", "f8"), ("f2", "f8"), ("i8", "f8")])
    def test_the_first_fit_decides_the_dtype(self, data: Any, given: str, kept: str) -> None:
        X, y = data
        classifier = LaplaceClassifier().fit(X.astype(given), y)
        assert classifier.predict_proba(X.astype(given)).dtype == kept
        assert classifier.partial_fit(X, y).predict_proba(X).dtype == kept

    def test_sparse_features_are_refused(self, data: Any) -> None:
        X, y = data
        with pytest.raises(TypeError, match=r"[Ss]parse data"):
            LaplaceClassifier().fit(csr_matrix(X), y)


class TestWeights:
    def test_a_weight_is_a_number_of_copies(self, data: Any) -> None:
        X, y = data
        copies = np.arange(len(X)) % 3
        weighted = LaplaceClassifier(tolerance=0.0).fit(X, y, sample_weight=copies)
        repeated = LaplaceClassifier(tolerance=0.0).fit(X.repeat(copies, 0), y.repeat(copies))
        np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-6)
        assert weighted.score(X, y, sample_weight=copies) == repeated.score(X.repeat(copies, 0), y.repeat(copies))

    def test_class_weights_multiply_those_of_the_rows(self, data: Any) -> None:
        X, y = data
        weights = np.where(y == "eel", 3.0, 1.0)
        by_class = LaplaceClassifier(class_weight={"eel": 3.0}).fit(X, y, sample_weight=np.full(len(X), 2.0))
        by_row = LaplaceClassifier().fit(X, y, sample_weight=2.0 * weights)
        np.testing.assert_allclose(by_class.predict_proba(X), by_row.predict_proba(X), rtol=1e-12)
        by_class.partial_fit(X[:9], y[:9])
        by_row.partial_fit(X[:9], y[:9], sample_weight=weights[:9])
        np.testing.assert_allclose(by_class.predict_proba(X), by_row.predict_proba(X), rtol=1e-12)

    def test_balanced_classes_count_alike(self, data: Any) -> None:
        X, y = data
        counts = {name: float(np.sum(y == name)) for name in NAMES}
        weights = np.array([len(y) / (4 * counts[name]) for name in y])
        balanced = LaplaceClassifier(class_weight="balanced").fit(X, y)
        by_row = LaplaceClassifier().fit(X, y, sample_weight=weights)
        np.testing.assert_allclose(balanced.predict_proba(X), by_row.predict_proba(X), rtol=1e-12)

    def test_balanced_classes_count_copies(self, data: Any) -> None:
        X, y = data
        copies = np.arange(len(X)) % 4
        weighted = LaplaceClassifier(class_weight="balanced", tolerance=0.0).fit(X, y, sample_weight=copies)
        repeated = LaplaceClassifier(class_weight="balanced", tolerance=0.0)
        repeated.fit(X.repeat(copies, 0), y.repeat(copies))
        np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-6)
        without = LaplaceClassifier(class_weight="balanced").fit(X, y, sample_weight=(y != "fox") * 1.0)
        assert "fox" not in without.predict(X)

    def test_weights_of_partial_fit_are_gamma(self, problem: Problem, data: Any) -> None:
        X, y = data
        weights = np.linspace(0.0, 2.0, 10)
        classifier = LaplaceClassifier(gamma=0.5, tolerance=0.0).fit(X, y)
        posterior = LastLayerLaplace.fit_map(problem.pool, problem.labels, 4, tolerance=0.0)
        posterior.update(problem.pool[1:10], problem.labels[1:10], gamma=torch.from_numpy(0.5 * weights[1:]))
        classifier.partial_fit(X[:10], y[:10], sample_weight=weights)
        assert torch.equal(classifier.posterior_.mean, posterior.mean)
        assert torch.equal(classifier.posterior_.covariance, posterior.covariance)

    @pytest.mark.parametrize("step", ["line_search", "newton", "joint"])
    @pytest.mark.parametrize("by_class", [False, True])
    def test_a_weight_of_zero_leaves_the_row_out(self, data: Any, step: str, by_class: bool) -> None:
        X, y = data
        weights = np.where(y == "eel", 0.0, 2.0)[:12]
        assert 0 < np.count_nonzero(weights) < 12
        classifier, expected = (LaplaceClassifier(step=step).fit(X, y) for _ in range(2))
        if by_class:
            classifier.set_params(class_weight={"cat": 2.0, "dog": 2.0, "eel": 0.0, "fox": 2.0})
            classifier.partial_fit(X[:12], y[:12])
        else:
            classifier.partial_fit(X[:12], y[:12], sample_weight=weights)
        kept = weights > 0.0
        expected.partial_fit(X[:12][kept], y[:12][kept], sample_weight=weights[kept])
        assert torch.equal(classifier.posterior_.mean, expected.posterior_.mean)
        assert torch.equal(classifier.posterior_.covariance, expected.posterior_.covariance)
        assert classifier.posterior_.absorbed_labels == np.count_nonzero(weights)

    @pytest.mark.parametrize("step", ["line_search", "newton", "joint"])
    def test_a_later_partial_fit_takes_weights_that_are_all_zero(self, data: Any, step: str) -> None:
        X, y = data
        classifier = LaplaceClassifier(step=step).fit(X, y)
        before, covariance = classifier.predict_log_proba(X), classifier.posterior_.covariance
        classifier.partial_fit(X[:3], y[:3], sample_weight=np.zeros(3))
        np.testing.assert_array_equal(classifier.predict_log_proba(X), before)
        assert torch.equal(classifier.posterior_.covariance, covariance)
        assert classifier.posterior_.absorbed_labels == 0

    @pytest.mark.parametrize("step", ["line_search", "newton", "joint"])
    @pytest.mark.parametrize("classes", [None, [*NAMES, "bee", "owl"]])
    def test_rows_of_weight_zero_add_their_new_classes(self, data: Any, step: str, classes: list[str] | None) -> None:
        X, y = data
        classifier = LaplaceClassifier(step=step, link="plugin").fit(X, y)
        before, covariance = classifier.predict_proba(X), classifier.posterior_.covariance
        classifier.partial_fit(X[:2], ["owl", "bee"], classes, sample_weight=np.zeros(2))
        assert classifier.classes_.tolist() == ["bee", "cat", "dog", "eel", "fox", "owl"]
        after = classifier.predict_proba(X)
        np.testing.assert_allclose(after[:, 1:5] / after[:, 1:5].sum(1, keepdims=True), before, rtol=1e-9)
        assert torch.equal(classifier.posterior_.covariance, covariance)

    @pytest.mark.parametrize("class_weight", [None, "balanced", dict.fromkeys(NAMES.tolist(), 2.0)], ids=str)
    def test_the_first_fit_needs_a_weight_above_zero(self, data: Any, class_weight: Any) -> None:
        X, y = data
        zeros = np.zeros(len(X))
        with pytest.raises(ValueError, match=r"^sample_weight .*must be above zero for at least one row"):
            LaplaceClassifier(class_weight=class_weight).fit(X, y, zeros)
        if class_weight != "balanced":
            with pytest.raises(ValueError, match=r"^sample_weight .*must be above zero for at least one row"):
                LaplaceClassifier(class_weight=class_weight).partial_fit(X, y, NAMES, zeros)

    @pytest.mark.parametrize(("weight", "error"), [(-1.0, ValueError), (np.nan, ValueError), ("2", TypeError)])
    def test_a_bad_class_weight_is_named(self, data: Any, weight: Any, error: type[Exception]) -> None:
        X, y = data
        classifier = LaplaceClassifier().fit(X, y).set_params(class_weight={"cat": weight})
        for call in (classifier.fit, classifier.partial_fit):
            with pytest.raises(error, match=r"^class_weight\['cat'\] must be "):
                call(X, y)


class TestNewClasses:
    @pytest.mark.parametrize("classes", [None, [*NAMES, "bee", "owl"]])
    def test_a_label_of_a_new_class_adds_it(self, data: Any, classes: list[str] | None) -> None:
        X, y = data
        classifier = LaplaceClassifier().fit(X, y)
        before = classifier.predict_proba(X)
        classifier.partial_fit(X[:2], ["owl", "bee"], classes)
        assert classifier.classes_.tolist() == ["bee", "cat", "dog", "eel", "fox", "owl"]
        after = classifier.predict_proba(X)
        known = after[:, 1:5] / after[:, 1:5].sum(1, keepdims=True)
        assert np.abs(known - before).max() < 0.2  # the odds of the others are nearly those of before
        assert after[0, 5] > after[2:, 5].mean()


def test_a_search_over_arrays_of_parameters(data: Any) -> None:
    """A search takes its values out of arrays as NumPy's own booleans, numbers and texts."""
    grid = {
        "fit_bias": np.array([True, False]),
        "standardize": np.array([True, False]),
        "link": np.array(["plugin"]),
        "prior_precision": np.array([1.0], np.float32),
    }
    search = GridSearchCV(LaplaceClassifier(), grid, cv=2, error_score="raise").fit(*data)
    assert len(search.cv_results_["params"]) == 4
    best = {name: value.item() for name, value in search.best_params_.items()}
    assert search.best_estimator_.posterior_.has_bias is best["fit_bias"]
    expected = LaplaceClassifier(**best).fit(*data)
    np.testing.assert_array_equal(search.predict_proba(data[0]), expected.predict_proba(data[0]))


def test_logarithms_of_probabilities_are_finite(data: Any) -> None:
    X, y = data
    classifier = LaplaceClassifier(link="plugin").fit(X, y)
    np.testing.assert_allclose(np.exp(classifier.predict_log_proba(X)), classifier.predict_proba(X), rtol=1e-12)
    assert np.isfinite(classifier.predict_log_proba(1e6 * X)).all()


class TestErrors:
    @pytest.mark.parametrize(
        ("parameter", "error"),
        [
            ({"prior_precision": 0.0}, ValueError),
            ({"prior_precision": "auto"}, TypeError),
            ({"curvature": "exact"}, ValueError),
            ({"step": "sgd"}, ValueError),
            ({"gamma": -1.0}, ValueError),
            ({"fit_bias": "no"}, TypeError),
            ({"standardize": 1}, TypeError),
            ({"link": "mc"}, ValueError),
        ],
        ids=str,
    )
    def test_parameters_are_checked_by_fit(self, data: Any, parameter: dict[str, Any], error: type[Exception]) -> None:
        classifier = LaplaceClassifier(**parameter)  # scikit-learn wants no checks in the constructor
        with pytest.raises(error, match=f"^{next(iter(parameter))} must be "):
            classifier.fit(*data)

    @pytest.mark.parametrize("parameter", [{"step": "sgd"}, {"gamma": -1.0}, {"link": "mc"}], ids=str)
    def test_a_parameter_set_later_is_checked_too(self, data: Any, parameter: dict[str, Any]) -> None:
        X, y = data
        classifier = LaplaceClassifier().fit(X, y).set_params(**parameter)
        for call in (lambda: classifier.partial_fit(X, y), lambda: classifier.predict_proba(X)):
            with pytest.raises(ValueError, match=f"^{next(iter(parameter))} must be "):
                call()

    def test_labels_of_another_kind_and_fewer_classes_change_nothing(self, data: Any) -> None:
        X, y = data
        classifier = LaplaceClassifier().fit(X, y)
        before = classifier.predict_proba(X)
        with pytest.raises(ValueError, match=r"^y must hold labels of the kind of 'cat', got 0"):
            classifier.partial_fit(X[:2], [0, 1])
        with pytest.raises(ValueError, match=r"^classes must hold .*'fox'.* as in the first fit, got .*'owl'"):
            classifier.partial_fit(X[:2], y[:2], classes=["cat", "dog", "eel", "owl"])
        with pytest.raises(ValueError, match=r"^y contains previously unseen labels"):
            classifier.partial_fit(X[:2], ["cat", "owl"], classes=NAMES)
        np.testing.assert_array_equal(classifier.predict_proba(X), before)

    @pytest.mark.parametrize("fitted", [False, True])
    def test_a_text_that_is_longer_than_all_classes_is_not_cut(self, data: Any, fitted: bool) -> None:
        classifier = LaplaceClassifier().fit(*data) if fitted else LaplaceClassifier()
        with pytest.raises(ValueError, match=r"^y contains previously unseen labels: 'catfish' is not one of classes"):
            classifier.partial_fit(data[0][:2], ["cat", "catfish"], classes=NAMES)

    @pytest.mark.parametrize(
        ("given", "classes"), [([0, 1], ["0", "1"]), ([True, False], [0, 1]), ([0, 1], [False, True])], ids=str
    )
    def test_the_first_partial_fit_wants_labels_of_the_kind_of_the_classes(
        self, data: Any, given: list[Any], classes: list[Any]
    ) -> None:
        with pytest.raises(ValueError, match=r"^y must hold labels of the kind of "):
            LaplaceClassifier().partial_fit(data[0][:2], given, classes=classes)

    @pytest.mark.parametrize("given", [[0, 1], [0.0, 2.0], ["cat", "dog"]], ids=str)
    def test_booleans_meet_booleans_only(self, data: Any, given: list[Any]) -> None:
        X, y = data
        classifier = LaplaceClassifier().fit(X, y == "cat")
        says = f"must hold labels of the kind of False, got {given[0]!r}$"
        with pytest.raises(ValueError, match=f"^y {says}"):
            classifier.partial_fit(X[:2], given)
        with pytest.raises(ValueError, match=f"^classes {says}"):
            classifier.partial_fit(X[:2], [False, True], classes=given)
        assert classifier.partial_fit(X[:2], [np.True_, False]).classes_.dtype == bool
        others = LaplaceClassifier().fit(X, np.where(y == "cat", *given))
        with pytest.raises(ValueError, match=f"^y must hold labels of the kind of {given[0]!r}, got True$"):
            others.partial_fit(X[:2], [True, False])

    @pytest.mark.parametrize(
        ("classes", "says"),
        [
            ([None, *NAMES], "labels of one sortable type, without missing values, got unknown values"),
            ([0.0, 1.0, np.nan], "NaN"),
            ([0.5, 1.5], "labels of one sortable type, without missing values, got continuous values"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
    def test_missing_values_are_no_classes(self, data: Any, classes: list[Any], says: str) -> None:
        X, y = data
        unfitted = LaplaceClassifier()
        with pytest.raises(ValueError, match=f"classes .*{says}"):
            unfitted.partial_fit(X, y, classes)
        assert not hasattr(unfitted, "classes_")
        with pytest.raises(ValueError, match=f"classes .*{says}"):
            LaplaceClassifier().fit(X, y).partial_fit(X[:2], y[:2], classes)

    def test_known_classes_keep_their_dtype(self, data: Any) -> None:
        X, y = data
        classifier = LaplaceClassifier().fit(X, np.unique(y, return_inverse=True)[1])
        assert classifier.partial_fit(X[:2], [0.0, 1.0]).classes_.dtype == np.int64

    def test_balanced_weights_are_for_fit(self, data: Any) -> None:
        X, y = data
        classifier = LaplaceClassifier(class_weight="balanced").fit(X, y)
        with pytest.raises(ValueError, match=r"^class_weight must be a dictionary or None for partial_fit, got 'bal"):
            classifier.partial_fit(X[:2], y[:2])

    @pytest.mark.parametrize("weights", [np.ones(3), np.full(60, -1.0), np.full(60, np.nan)])
    def test_bad_weights_change_nothing(self, data: Any, weights: NDArray[Any]) -> None:
        X, y = data
        classifier = LaplaceClassifier().fit(X, y)
        before = classifier.predict_proba(X)
        for call in (classifier.fit, classifier.partial_fit):
            with pytest.raises(ValueError, match="sample_weight"):
                call(X, y, sample_weight=weights)
        np.testing.assert_array_equal(classifier.predict_proba(X), before)

    def test_one_class_is_refused(self, data: Any) -> None:
        X, _ = data
        with pytest.raises(ValueError, match=r"^y must hold at least two classes, got one class: 'cat'"):
            LaplaceClassifier().fit(X, ["cat"] * len(X))
        with pytest.raises(ValueError, match=r"^classes must hold at least two classes, got one class"):
            LaplaceClassifier().partial_fit(X, ["cat"] * len(X), classes=["cat"])

    def test_the_first_partial_fit_needs_classes(self, data: Any) -> None:
        with pytest.raises(ValueError, match=r"^classes must be passed on the first call"):
            LaplaceClassifier().partial_fit(*data)

    def test_a_classifier_that_is_not_fitted_raises(self, data: Any) -> None:
        X, _ = data
        for method in ("predict", "predict_proba", "decision_function"):
            with pytest.raises(NotFittedError):
                getattr(LaplaceClassifier(), method)(X)


class TestInTheLibrary:
    def test_a_clone_has_the_parameters_and_no_posterior(self, data: Any) -> None:
        copy = clone(LaplaceClassifier(gamma=0.5).fit(*data))
        assert copy.get_params()["gamma"] == 0.5
        assert not hasattr(copy, "posterior_")

    @pytest.mark.parametrize("by", ["pickle", "joblib"])
    def test_copies_can_be_updated(self, data: Any, by: str, tmp_path: Any) -> None:
        X, y = data
        classifier = LaplaceClassifier().fit(X[:20], y[:20]).partial_fit(X[20:30], y[20:30])
        if by == "pickle":
            copy = pickle.loads(pickle.dumps(classifier))
        else:
            joblib.dump(classifier, tmp_path / "classifier.joblib")
            copy = joblib.load(tmp_path / "classifier.joblib")
        for one in (classifier, copy):
            one.partial_fit(X[30:], y[30:])
        np.testing.assert_array_equal(copy.predict_proba(X), classifier.predict_proba(X))
        assert torch.equal(copy.posterior_.precision, classifier.posterior_.precision)

    def test_model_selection(self, data: Any) -> None:
        X, y = data
        scores = cross_val_score(make_pipeline(StandardScaler(), LaplaceClassifier()), X, y, cv=3)
        assert scores.mean() > 0.8
        search = GridSearchCV(LaplaceClassifier(), {"prior_precision": [1.0, 1e5]}, cv=3, scoring="neg_log_loss")
        assert search.fit(X, y).best_params_ == {"prior_precision": 1.0}

    def test_calibration_by_cross_validation(self, data: Any) -> None:
        X, y = data
        calibrated = CalibratedClassifierCV(LaplaceClassifier(), cv=3).fit(X, y)
        assert calibrated.score(X, y) > 0.8


class TestWrongCalls:
    def test_a_fit_that_fails_leaves_the_classifier_as_it_was(self, data: Any) -> None:
        X, y = data
        classifier = LaplaceClassifier().fit(X, y)
        before, expected = dict(vars(classifier)), classifier.predict_proba(X)
        with pytest.raises(ValueError, match="at least two classes"):
            classifier.fit(X[:, :5], np.repeat(y[:1], len(y)))
        assert vars(classifier) == before
        np.testing.assert_array_equal(classifier.predict_proba(X), expected)
        unfitted = LaplaceClassifier()
        with pytest.raises(ValueError, match="previously unseen labels"):
            unfitted.partial_fit(X, y, classes=["ape", "bat"])
        assert vars(unfitted) == vars(LaplaceClassifier())

    @pytest.mark.parametrize("kind", ["backwards", "a field of records"])
    def test_arrays_that_torch_cannot_view_are_accepted(self, data: Any, kind: str) -> None:
        X, y = data
        other = REFUSED[kind](X)
        expected, classifier = LaplaceClassifier().fit(X, y), LaplaceClassifier().fit(other, y)
        np.testing.assert_array_equal(classifier.predict_proba(other), expected.predict_proba(X))
        single = REFUSED[kind](X[:1])
        np.testing.assert_array_equal(classifier.predict_proba(single), expected.predict_proba(X[:1]))
        again = classifier.partial_fit(other, y).predict_proba(X)
        np.testing.assert_array_equal(again, expected.partial_fit(X, y).predict_proba(X))
