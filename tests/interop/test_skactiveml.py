"""``LaplaceQueryStrategy`` with the real scikit-activeml: interface, usual loop, and the picks of ``select_batch``."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from skactiveml.base import SingleAnnotatorPoolQueryStrategy
from skactiveml.classifier import ParzenWindowClassifier, SklearnClassifier
from skactiveml.pool import RandomSampling, SubSamplingWrapper
from skactiveml.utils import MISSING_LABEL, is_labeled, unlabeled_indices
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from lapal_ext import LastLayerLaplace, select_batch
from lapal_ext.acquisition.registry import ACQUISITIONS
from lapal_ext.interop.skactiveml import LaplaceQueryStrategy
from lapal_ext.interop.sklearn import LaplaceClassifier
from lapal_ext.posterior.standardization import standardize
from tests.problems import make_problem

SCORE_ALL = ("margin", "entropy", "least_confident", "variance", "gradient_norm", "bald", "power_margin", "random")
CHOOSE_BATCHES = tuple(name for name in ACQUISITIONS if name not in SCORE_ALL)
LABELLED = 16


class Task(NamedTuple):
    X: NDArray[Any]
    y: NDArray[Any]  # the first LABELLED are known
    truth: NDArray[Any]
    clf: SklearnClassifier


@pytest.fixture
def task() -> Task:
    problem = make_problem(n_pool=80)
    truth = problem.labels.numpy().astype(float)
    y = np.full(80, MISSING_LABEL)
    y[:LABELLED] = truth[:LABELLED]
    return Task(problem.pool.numpy(), y, truth, SklearnClassifier(LaplaceClassifier(), classes=range(4)))


def posterior_of(task: Task) -> LastLayerLaplace:
    return LastLayerLaplace.fit_map(task.X[:LABELLED], task.truth[:LABELLED].astype(int), 4)


class TestPicks:
    @pytest.mark.parametrize("acquisition", ACQUISITIONS)
    def test_they_are_those_of_select_batch(self, task: Task, acquisition: str) -> None:
        picks = LaplaceQueryStrategy(acquisition, random_state=0).query(task.X, task.y, task.clf, batch_size=6)
        assert picks.dtype == np.int64
        assert len(set(picks.tolist())) == 6
        assert not is_labeled(task.y[picks]).any()
        if acquisition in ("random", "power_margin", "badge", "typiclust", "probcover"):
            return  # these draw with a seed that scikit-activeml chooses
        expected = select_batch(posterior_of(task), task.X[LABELLED:], 6, acquisition, labelled=task.X[:LABELLED])
        assert picks.tolist() == (expected.indices + LABELLED).tolist()

    def test_each_pick_is_absorbed_before_the_next(self, task: Task) -> None:
        at_once = LaplaceQueryStrategy("margin", targets=None).query(task.X, task.y, task.clf, batch_size=8)
        one_by_one = LaplaceQueryStrategy("margin").query(task.X, task.y, task.clf, batch_size=8)
        expected = select_batch(posterior_of(task), task.X[LABELLED:], 8, targets=None)
        assert at_once.tolist() == (expected.indices + LABELLED).tolist()
        assert at_once[0] == one_by_one[0]
        assert at_once.tolist() != one_by_one.tolist()

    def test_step_and_gamma_are_those_of_the_classifier(self, task: Task) -> None:
        clf = SklearnClassifier(LaplaceClassifier(step="newton", gamma=0.1, prior_precision=2.0), classes=range(4))
        picks = LaplaceQueryStrategy("bald").query(task.X, task.y, clf, batch_size=8)
        posterior = LastLayerLaplace.fit_map(task.X[:LABELLED], task.truth[:LABELLED].astype(int), 4, 2.0)
        expected = select_batch(posterior, task.X[LABELLED:], 8, "bald", step="newton", gamma=0.1)
        assert picks.tolist() == (expected.indices + LABELLED).tolist()

    def test_picks_of_a_joint_classifier_are_absorbed_by_line_search(self, task: Task) -> None:
        strategy = LaplaceQueryStrategy("margin")
        joint, line_search = (
            strategy.query(
                task.X,
                task.y,
                SklearnClassifier(LaplaceClassifier(step=step, gamma=0.5), classes=range(4)),
                batch_size=8,
                return_utilities=True,
            )
            for step in ("joint", "line_search")
        )
        assert joint[0].tolist() == line_search[0].tolist()
        np.testing.assert_array_equal(joint[1], line_search[1])

    @pytest.mark.parametrize("acquisition", ["random", "power_margin", "badge", "typiclust", "probcover"])
    def test_the_random_state_decides(self, task: Task, acquisition: str) -> None:
        def query(random_state: Any) -> list[int]:
            strategy = LaplaceQueryStrategy(acquisition, random_state=random_state)
            picks: list[int] = strategy.query(task.X, task.y, task.clf, batch_size=6).tolist()
            assert strategy.query(task.X, task.y, task.clf, batch_size=6).tolist() == picks
            return picks

        assert query(3) == query(3) == query(np.random.RandomState(3))
        assert len({tuple(query(seed)) for seed in range(6)}) > 1

    def test_a_callable_gives_the_utilities(self, task: Task) -> None:
        strategy = LaplaceQueryStrategy(lambda _, pool: -pool[:, 0])
        picks, utilities = clone(strategy).query(task.X, task.y, task.clf, batch_size=3, return_utilities=True)
        assert picks.tolist() == (task.X[LABELLED:, 0].argsort()[:3] + LABELLED).tolist()
        np.testing.assert_array_equal(utilities[0, LABELLED:], -task.X[LABELLED:, 0])


class TestCandidates:
    @pytest.mark.parametrize("acquisition", ["margin", "badge", "coreset"])
    def test_indices_and_rows_and_none_agree(self, task: Task, acquisition: str) -> None:
        strategy = LaplaceQueryStrategy(acquisition, random_state=0)
        every = strategy.query(task.X, task.y, task.clf, batch_size=4)
        rows = unlabeled_indices(task.y)
        indices = strategy.query(task.X, task.y, task.clf, candidates=rows[::-1], batch_size=4)
        features = strategy.query(task.X, task.y, task.clf, candidates=task.X[rows], batch_size=4)
        assert every.tolist() == indices.tolist() == rows[features].tolist()

    @pytest.mark.parametrize("form", [list, np.array])
    def test_a_mask_is_refused(self, task: Task, form: Any) -> None:
        """scikit-activeml reads it as the indices 0 and 1."""
        mask = form([row > 60 for row in range(80)])
        with pytest.raises(TypeError, match=r"^candidates must hold indices, .*numpy\.flatnonzero\(mask\)"):
            LaplaceQueryStrategy().query(task.X, task.y, task.clf, candidates=mask)

    @pytest.mark.parametrize(
        ("candidates", "got"),
        [
            ([20.0, 21.9, 22.5], r"float 20\.0"),
            (np.array([20.0, 21.0]), r"float 20\.0"),
            (np.array([20, 21.5], dtype=object), r"float 21\.5"),
            (np.array([20, True], dtype=object), "bool True"),
            (["20", "21"], "str '20'"),
        ],
        ids=str,
    )
    def test_numbers_that_are_no_integers_are_refused(self, task: Task, candidates: Any, got: str) -> None:
        """scikit-activeml takes their whole part."""
        with pytest.raises(TypeError, match=rf"^candidates must hold integers, got {got}$"):
            LaplaceQueryStrategy().query(task.X, task.y, task.clf, candidates=candidates, batch_size=2)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int64, object])
    def test_integers_of_any_dtype_are_accepted(self, task: Task, dtype: Any) -> None:
        candidates = np.array([np.int64(20), 21, 22], dtype=dtype)
        picks = LaplaceQueryStrategy("margin").query(task.X, task.y, task.clf, candidates=candidates, batch_size=3)
        assert sorted(picks.tolist()) == [20, 21, 22]

    def test_negative_indices_are_refused(self, task: Task) -> None:
        with pytest.raises(ValueError, match=r"^candidates must lie in \[0, 80\), one of the samples of X, got -1"):
            LaplaceQueryStrategy().query(task.X, task.y, task.clf, candidates=[79, -1], batch_size=2)

    def test_only_candidates_are_picked(self, task: Task) -> None:
        rows = np.array([70, 20, 33, 51])
        strategy = LaplaceQueryStrategy("margin")
        picks, utilities = strategy.query(
            task.X, task.y, task.clf, candidates=rows, batch_size=3, return_utilities=True
        )
        assert set(picks) < set(rows)
        assert utilities.shape == (3, 80)
        assert np.isfinite(utilities).sum(1).tolist() == [4, 3, 2]
        picks, utilities = strategy.query(
            task.X, task.y, task.clf, candidates=task.X[rows], batch_size=3, return_utilities=True
        )
        assert utilities.shape == (3, 4)

    def test_a_batch_larger_than_the_candidates_is_all_of_them(self, task: Task) -> None:
        with pytest.warns(UserWarning, match=r"larger than number of candidates"):
            picks = LaplaceQueryStrategy().query(task.X, task.y, task.clf, candidates=[40, 30], batch_size=5)
        assert sorted(picks) == [30, 40]

    def test_without_candidates_it_raises(self, task: Task) -> None:
        with (
            pytest.warns(UserWarning, match=r"larger than number of candidates"),
            pytest.raises(ValueError, match=r"^candidates must hold at least one sample"),
        ):
            LaplaceQueryStrategy().query(task.X, task.truth, task.clf)


class TestUtilities:
    @pytest.mark.parametrize("acquisition", SCORE_ALL)
    @pytest.mark.parametrize("link", ["plugin", "mean_field"])
    def test_they_are_those_of_every_sample_at_each_pick(self, task: Task, acquisition: str, link: str) -> None:
        clf = SklearnClassifier(LaplaceClassifier(step="newton", gamma=0.3), classes=range(4))
        strategy = LaplaceQueryStrategy(acquisition, link=link, random_state=1)
        picks, utilities = strategy.query(task.X, task.y, clf, batch_size=5, return_utilities=True)
        assert picks.tolist() == strategy.query(task.X, task.y, clf, batch_size=5).tolist()
        for number, row in enumerate(utilities):
            missing = {*range(LABELLED), *picks[:number].tolist()}
            assert set(np.isnan(row).nonzero()[0].tolist()) == missing
            assert np.nanargmax(row) == picks[number]
        if acquisition in ("random", "power_margin"):
            return  # these draw with a seed that scikit-activeml chooses
        result = select_batch(
            posterior_of(task), task.X[LABELLED:], 5, acquisition, step="newton", gamma=0.3, link=link
        )
        np.testing.assert_allclose(utilities[range(5), picks], result.utilities, rtol=1e-9)

    @pytest.mark.parametrize("acquisition", CHOOSE_BATCHES)
    def test_only_picks_have_one_if_an_acquisition_scores_no_samples(self, task: Task, acquisition: str) -> None:
        strategy = LaplaceQueryStrategy(acquisition, random_state=1)
        picks, utilities = strategy.query(task.X, task.y, task.clf, batch_size=5, return_utilities=True)
        assert picks.tolist() == strategy.query(task.X, task.y, task.clf, batch_size=5).tolist()
        assert np.isfinite(utilities).sum() == 5
        assert np.isfinite(utilities[range(5), picks]).all()

    def test_they_do_not_change_within_a_batch_chosen_at_once(self, task: Task) -> None:
        strategy = LaplaceQueryStrategy("entropy", targets=None)
        picks, utilities = strategy.query(task.X, task.y, task.clf, batch_size=4, return_utilities=True)
        np.testing.assert_array_equal(
            utilities[3, LABELLED:][~np.isnan(utilities[3, LABELLED:])].max(), utilities[0, picks[3]]
        )


class TestModel:
    def test_without_fit_clf_the_fitted_model_is_used(self, task: Task) -> None:
        strategy = LaplaceQueryStrategy("bald")
        fitted = clone(task.clf).fit(task.X, task.y)
        before = fitted.predict_proba(task.X)
        expected = strategy.query(task.X, task.y, task.clf, batch_size=5)
        assert strategy.query(task.X, task.y, fitted, fit_clf=False, batch_size=5).tolist() == expected.tolist()
        np.testing.assert_array_equal(fitted.predict_proba(task.X), before)
        fitted.partial_fit(task.X[40:60], task.truth[40:60])
        other = strategy.query(task.X, task.y, fitted, fit_clf=False, batch_size=5)
        assert other.tolist() != expected.tolist()

    def test_a_copy_is_fitted(self, task: Task) -> None:
        LaplaceQueryStrategy().query(task.X, task.y, task.clf)
        assert not hasattr(task.clf, "is_fitted_")
        assert not hasattr(task.clf.estimator, "posterior_")

    def test_a_model_that_is_not_fitted_raises(self, task: Task) -> None:
        with pytest.raises(NotFittedError):
            LaplaceQueryStrategy().query(task.X, task.y, task.clf, fit_clf=False)
        with pytest.warns(UserWarning, match="could not be fitted"):
            failed = clone(task.clf).fit(task.X, np.full(80, MISSING_LABEL))
        with pytest.raises(ValueError, match=r"^clf must have been fitted to labels of at least two classes"):
            LaplaceQueryStrategy().query(task.X, task.y, failed, fit_clf=False)

    @pytest.mark.parametrize(
        ("clf", "error", "says"),
        [
            (
                SklearnClassifier(LogisticRegression()),
                TypeError,
                "^clf must wrap a LaplaceClassifier, got LogisticRegression",
            ),
            (ParzenWindowClassifier(), TypeError, "`clf`"),
            (LaplaceClassifier(), TypeError, "`clf`"),
            (SklearnClassifier(LaplaceClassifier(), missing_label=-1), ValueError, "must be equal"),
            (SklearnClassifier(LaplaceClassifier(gamma=-1.0)), ValueError, "^gamma must be at least 0"),
        ],
    )
    def test_other_classifiers_are_refused(self, task: Task, clf: Any, error: type[Exception], says: str) -> None:
        with pytest.raises(error, match=says):
            LaplaceQueryStrategy().query(task.X, task.y, clf)

    @pytest.mark.parametrize(
        ("parameter", "error"),
        [
            ({"acquisition": "mergin"}, ValueError),
            ({"targets": "sampled"}, ValueError),
            ({"link": "mc"}, ValueError),
        ],
        ids=str,
    )
    def test_wrong_parameters_are_refused(self, task: Task, parameter: dict[str, Any], error: type[Exception]) -> None:
        with pytest.raises(error, match=f"^{next(iter(parameter))} must be one of "):
            LaplaceQueryStrategy(**parameter).query(task.X, task.y, task.clf)

    @pytest.mark.parametrize("labels", [("a", "b", ""), (1, 2, -1), ("a", "b", None), (7.0, 3.0, np.nan)], ids=str)
    def test_labels_of_any_type_are_accepted(self, task: Task, labels: tuple[Any, Any, Any]) -> None:
        one, two, missing = labels
        y = np.array([one, two] * 8 + [missing] * 64, dtype=object if missing is None else None)
        clf = SklearnClassifier(LaplaceClassifier(), classes=[one, two], missing_label=missing)
        picks = LaplaceQueryStrategy(missing_label=missing).query(task.X, y, clf, batch_size=3)
        assert (picks >= LABELLED).all()

    @pytest.mark.parametrize(
        ("classes", "label", "missing"), [(["a", "b"], "abc", ""), ([0, 1], 0.5, -1.0), ([0, 1], 7, -1)], ids=str
    )
    def test_a_label_that_is_no_class_is_refused(self, task: Task, classes: Any, label: Any, missing: Any) -> None:
        """scikit-activeml cuts it to the type of the classes, so that 'abc' is 'a' and 0.5 is 0."""
        y = np.array([*classes, label] * 4 + [missing] * 68)
        clf = SklearnClassifier(LaplaceClassifier(), classes=classes, missing_label=missing)
        with pytest.raises(ValueError, match=rf"^y must hold classes of clf\.classes, got {label!r}$"):
            LaplaceQueryStrategy(missing_label=missing).query(task.X, y, clf)

    @pytest.mark.parametrize("fit_clf", [True, False])
    def test_a_classifier_that_fits_samples_without_a_label_is_refused(self, task: Task, fit_clf: bool) -> None:
        """The missing label would be one of its classes."""
        y = np.where(is_labeled(task.y), task.truth, -1).astype(int)
        clf = SklearnClassifier(
            LaplaceClassifier(), include_unlabeled_samples=True, classes=range(4), missing_label=-1
        ).fit(task.X, y)
        with pytest.raises(ValueError, match=r"^clf must have include_unlabeled_samples=False, got True"):
            LaplaceQueryStrategy(missing_label=-1).query(task.X, y, clf, fit_clf=fit_clf)


class TestColdStart:
    @pytest.mark.parametrize("acquisition", ACQUISITIONS)
    @pytest.mark.parametrize("n_labels", [0, 1, 2])
    def test_a_batch_is_chosen_with_no_label_or_labels_of_one_class(
        self, task: Task, acquisition: str, n_labels: int
    ) -> None:
        y = np.full(80, MISSING_LABEL)
        y[:n_labels] = 2.0
        strategy = LaplaceQueryStrategy(acquisition, random_state=0)
        picks = strategy.query(task.X, y, task.clf, batch_size=4)
        assert len(set(picks.tolist()) - set(range(n_labels))) == 4

    @pytest.mark.parametrize("parameters", [{}, {"fit_bias": False}, {"standardize": False}], ids=str)
    def test_the_few_labels_are_absorbed(self, task: Task, parameters: dict[str, bool]) -> None:
        y = np.full(80, MISSING_LABEL)
        y[0] = 2.0
        clf = SklearnClassifier(LaplaceClassifier(**parameters), classes=range(4))
        _, utilities = LaplaceQueryStrategy("variance").query(task.X, y, clf, return_utilities=True)
        prior = LastLayerLaplace(
            np.zeros((4, 12)), 10.0, bias=np.zeros(4) if parameters.get("fit_bias", True) else None
        )
        if parameters.get("standardize", True):
            standardize(prior, torch.from_numpy(task.X))
        expected = prior.fit(task.X[:0]).update(task.X[:1], np.array([2])).predict_latent(task.X[1:]).variance
        np.testing.assert_allclose(utilities[0, 1:], expected)

    @pytest.mark.parametrize("acquisition", ["margin", "entropy", "bald", "uherding", "gradient_norm"])
    @pytest.mark.parametrize("known", [[0, 1], [7, 3, 9]], ids=str)
    def test_the_model_has_all_classes_of_the_classifier(self, task: Task, acquisition: str, known: list[int]) -> None:
        y, labels = np.full(80, MISSING_LABEL), np.resize(known, LABELLED)
        y[:LABELLED] = labels
        clf = SklearnClassifier(LaplaceClassifier(), classes=range(10))
        picks, utilities = LaplaceQueryStrategy(acquisition).query(task.X, y, clf, batch_size=4, return_utilities=True)
        model = LastLayerLaplace.fit_map(task.X[:LABELLED], labels, 10)
        expected = select_batch(
            model, task.X, 4, acquisition, labelled=task.X[:LABELLED], candidates=np.arange(LABELLED, 80)
        )
        assert picks.tolist() == expected.indices.tolist()
        np.testing.assert_allclose(utilities[range(4), picks], expected.utilities, rtol=1e-9)

    @pytest.mark.parametrize("known", [[], [4], [4, 2], [4, 2, 0]], ids=str)
    def test_entropy_is_that_of_all_classes(self, task: Task, known: list[int]) -> None:
        """A class without a label does not disappear when the second class is known."""
        y = np.full(80, MISSING_LABEL)
        y[: len(known)] = known
        clf = SklearnClassifier(LaplaceClassifier(), classes=range(10))
        _, utilities = LaplaceQueryStrategy("entropy").query(task.X, y, clf, return_utilities=True)
        assert np.log(9) < np.nanmax(utilities) <= np.log(10) + 1e-9

    @pytest.mark.parametrize("names", [range(10), list("jihgfedcba"), [float(place) for place in range(10)]], ids=str)
    def test_a_fitted_classifier_gets_the_classes_without_a_label(self, task: Task, names: Any) -> None:
        """scikit-activeml fits its estimator to the classes that have a label."""
        text = isinstance(names[0], str)
        missing, labels = ("" if text else -1), np.resize([2, 7], LABELLED)
        y = np.array([*sorted(names), missing])[np.concatenate([labels, np.full(80 - LABELLED, 10)])]
        clf = SklearnClassifier(LaplaceClassifier(), classes=names, missing_label=missing).fit(task.X, y)
        assert len(clf.estimator_.classes_) == 2
        strategy = LaplaceQueryStrategy("bald", missing_label=missing)
        picks, utilities = strategy.query(task.X, y, clf, fit_clf=False, batch_size=4, return_utilities=True)
        model = LastLayerLaplace.fit_map(task.X[:LABELLED], (labels == 7).astype(int), 2)
        for _ in range(8):
            model.add_class()
        expected = select_batch(model, task.X[LABELLED:], 4, "bald")
        assert picks.tolist() == (expected.indices + LABELLED).tolist()
        np.testing.assert_allclose(utilities[range(4), picks], expected.utilities, rtol=1e-9)
        assert clf.estimator_.posterior_.num_classes == 2

    @pytest.mark.parametrize("known", [[], [2.0], [2.0, 1.0]], ids=str)
    def test_samples_in_reverse_are_taken(self, task: Task, known: list[float]) -> None:
        """A view with negative strides, which torch does not have."""
        y = np.full(80, MISSING_LABEL)
        y[: len(known)] = known
        picks = LaplaceQueryStrategy("maxherding").query(task.X[::-1], y, task.clf, batch_size=3)
        copied = LaplaceQueryStrategy("maxherding").query(task.X[::-1].copy(), y, task.clf, batch_size=3)
        assert picks.tolist() == copied.tolist()

    def test_unknown_classes_raise(self, task: Task) -> None:
        y = np.full(80, MISSING_LABEL)
        y[0] = 2.0
        with pytest.raises(ValueError, match=r"^clf.classes must name at least two classes"):
            LaplaceQueryStrategy().query(task.X, y, SklearnClassifier(LaplaceClassifier()))


class TestClassWeight:
    @pytest.mark.parametrize("names", [["cat", "dog", "eel", "fox"], [1, 2, 3, 4]])
    def test_it_names_the_classes_of_the_classifier(self, task: Task, names: list[Any]) -> None:
        """``query`` fits the model that the classifier itself fits, whatever the labels are called."""
        missing = "" if isinstance(names[0], str) else -1
        y = np.array([*names, missing])[np.where(is_labeled(task.y), task.truth, 4).astype(int)]
        weights = dict(zip(names, (1.0, 1.0, 30.0, 1.0), strict=True))
        clf = SklearnClassifier(LaplaceClassifier(class_weight=weights), classes=names, missing_label=missing)
        strategy = LaplaceQueryStrategy("margin", missing_label=missing)
        fitted = strategy.query(task.X, y, clf.fit(task.X, y), fit_clf=False, batch_size=5, return_utilities=True)
        picks, utilities = strategy.query(task.X, y, clf, batch_size=5, return_utilities=True)
        assert picks.tolist() == fitted[0].tolist()
        np.testing.assert_array_equal(utilities, fitted[1])

    def test_a_class_without_a_label_may_have_a_weight(self, task: Task) -> None:
        clf = SklearnClassifier(LaplaceClassifier(class_weight={7: 5.0}), classes=[0, 1, 2, 3, 7])
        unweighted = SklearnClassifier(LaplaceClassifier(), classes=clf.classes)
        plain = LaplaceQueryStrategy("margin").query(task.X, task.y, unweighted, batch_size=5)
        assert LaplaceQueryStrategy("margin").query(task.X, task.y, clf, batch_size=5).tolist() == plain.tolist()

    @pytest.mark.parametrize("class_weight", [None, "balanced", {2: 7.0}, {1: 9.0, 2: 0.5}], ids=str)
    @pytest.mark.parametrize("parameters", [{}, {"fit_bias": False}, {"standardize": "columns"}], ids=str)
    def test_labels_of_one_class_have_their_weight_and_not_gamma(
        self, task: Task, class_weight: Any, parameters: dict[str, Any]
    ) -> None:
        y = np.full(80, MISSING_LABEL)
        y[:5] = 2.0
        clf = SklearnClassifier(
            LaplaceClassifier(class_weight=class_weight, gamma=100.0, **parameters), classes=range(4)
        )
        _, utilities = LaplaceQueryStrategy("margin", targets=None).query(task.X, y, clf, return_utilities=True)
        weight = class_weight[2] if isinstance(class_weight, dict) else 1.0
        prior = LastLayerLaplace.untrained(task.X, 4, **parameters)
        expected = prior.update(task.X[:5], np.full(5, 2), "joint", gamma=weight).predict_proba(task.X[5:], "plugin")
        top = expected.topk(2).values
        np.testing.assert_allclose(utilities[0, 5:], 1.0 - (top[:, 0] - top[:, 1]), rtol=2e-3)
        quiet = SklearnClassifier(
            LaplaceClassifier(class_weight=class_weight, gamma=0.0, **parameters), classes=range(4)
        )
        _, same = LaplaceQueryStrategy("margin", targets=None).query(task.X, y, quiet, return_utilities=True)
        np.testing.assert_array_equal(utilities, same)

    def test_a_class_of_weight_zero_counts_as_without_labels(self, task: Task) -> None:
        clf = SklearnClassifier(LaplaceClassifier(class_weight={2: 0.0}), classes=range(4))
        nothing, one, two = (np.full(80, MISSING_LABEL) for _ in range(3))
        one[:5], two[:6] = 2.0, [2.0] * 5 + [1.0]

        def utilities(y: NDArray[Any], clf: SklearnClassifier = clf) -> NDArray[Any]:
            strategy = LaplaceQueryStrategy("entropy")
            result: NDArray[Any] = strategy.query(task.X, y, clf, candidates=range(6, 80), return_utilities=True)[1]
            return result

        np.testing.assert_array_equal(utilities(one), utilities(nothing))
        only = two.copy()
        only[:5] = MISSING_LABEL
        np.testing.assert_array_equal(utilities(two), utilities(only, task.clf))

    def test_other_classes_are_refused(self, task: Task) -> None:
        clf = SklearnClassifier(LaplaceClassifier(class_weight={"cat": 5.0}), classes=range(4))
        with pytest.raises(ValueError, match=r"^class_weight must hold classes of clf.classes, got 'cat'$"):
            LaplaceQueryStrategy().query(task.X, task.y, clf)

    @pytest.mark.parametrize("n_labels", [0, 1, LABELLED])
    def test_an_unknown_text_is_refused(self, task: Task, n_labels: int) -> None:
        y = np.where(np.arange(80) < n_labels, task.truth, MISSING_LABEL)
        clf = SklearnClassifier(LaplaceClassifier(class_weight="balance"), classes=range(4))
        with pytest.raises(ValueError, match=r"^class_weight must be one of 'balanced', got 'balance'"):
            LaplaceQueryStrategy().query(task.X, y, clf)

    def test_a_negative_weight_is_named_by_its_label(self, task: Task) -> None:
        y = np.array(["a", "b", ""])[np.where(is_labeled(task.y), task.truth > 1, 2).astype(int)]
        clf = SklearnClassifier(LaplaceClassifier(class_weight={"b": -5.0}), classes=["a", "b"], missing_label="")
        with pytest.raises(ValueError, match=r"^class_weight\['b'\] must be at least 0, got -5$"):
            LaplaceQueryStrategy(missing_label="").query(task.X, y, clf)


class TestInTheLibrary:
    def test_it_is_a_query_strategy_of_scikit_activeml(self) -> None:
        strategy = LaplaceQueryStrategy("bald", targets=None, random_state=3)
        assert isinstance(strategy, SingleAnnotatorPoolQueryStrategy)
        copy = clone(strategy).set_params(link="mean_field")
        assert copy.get_params() == {**strategy.get_params(), "link": "mean_field"}

    def test_it_works_in_a_sub_sampling_wrapper(self, task: Task) -> None:
        wrapper = SubSamplingWrapper(LaplaceQueryStrategy("margin"), max_candidates=20, random_state=0)
        picks, utilities = wrapper.query(X=task.X, y=task.y, batch_size=3, return_utilities=True, clf=task.clf)
        assert (picks >= LABELLED).all()
        assert np.isfinite(utilities).sum(1).tolist() == [20, 19, 18]

    def test_the_usual_loop_beats_random(self) -> None:
        """The loop of scikit-activeml's documentation, compared with its own random sampling."""
        problem = make_problem(n_classes=6, n_features=8, n_pool=400, seed=2)
        X, truth = problem.pool.numpy(), problem.labels.numpy().astype(float)
        clf = SklearnClassifier(LaplaceClassifier(), classes=np.unique(truth))

        def accuracy_after_cycles(strategy: Any, **query: Any) -> float:
            y = np.full(len(X), MISSING_LABEL)
            y[:12] = truth[:12]
            for _ in range(8):
                picks = strategy.query(X=X, y=y, batch_size=5, **query)
                y[picks] = truth[picks]
            assert is_labeled(y).sum() == 52
            return float(clone(clf).fit(X, y).score(X, truth))

        random = np.mean([accuracy_after_cycles(RandomSampling(random_state=seed)) for seed in range(5)])
        assert accuracy_after_cycles(LaplaceQueryStrategy(), clf=clf) > random
