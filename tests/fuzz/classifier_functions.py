"""What ``LaplaceClassifier`` accepts, and how a campaign changes it and each argument."""

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray

from lapal_ext.interop.sklearn import LaplaceClassifier
from lapal_ext.likelihood import CURVATURES
from lapal_ext.posterior.last_layer_laplace import UPDATE_STEPS
from tests.fuzz import arrays, changes
from tests.fuzz.changes import EITHER, REFUSED, SAME, Argument, Changed, Choose, Options, evenly, pick
from tests.fuzz.small import Arguments, Function, Small


def _features(x: NDArray[Any]) -> Argument:
    def change(choose: Choose, good: NDArray[Any]) -> Changed:
        not_finite = good.copy()
        not_finite.flat[choose(st.integers(0, good.size - 1))] = evenly(choose, (math.nan, math.inf))
        kind = evenly(choose, ("complex", "wider than torch", "0-d", "0-d of objects"))
        seen = evenly(choose, sorted(arrays.SEEN))
        options: Options = {
            "not finite": (REFUSED, lambda: not_finite),
            "flat": (REFUSED, lambda: good[:, 0]),
            "a dimension more": (REFUSED, lambda: good[None]),
            "no rows": (REFUSED, lambda: good[:0]),
            "no columns": (REFUSED, lambda: good[:, :0]),
            "another type": (REFUSED, lambda: evenly(choose, (None, "x", 1, {}, [], object(), [["x"]], {1}))),
            "texts": (REFUSED, lambda: np.full(good.shape, "x")),
            "objects": (REFUSED, lambda: np.full(good.shape, None, dtype=object)),
            f"an array, {kind}": (REFUSED, lambda: arrays.REFUSED[kind](good)),
            f"an array, {seen}": (SAME, lambda: arrays.SEEN[seen](good.copy())),
            "a field of records": (SAME, lambda: arrays.REFUSED["a field of records"](good)),
            "backwards": (SAME, lambda: good[::-1].copy()[::-1]),
            "in the other byte order": (SAME, lambda: good.astype(good.dtype.newbyteorder())),
            "a list": (EITHER, good.tolist),
            "huge": (EITHER, lambda: good * float(np.finfo(good.dtype).max) ** choose(st.floats(0.1, 0.9))),
        }
        return pick(choose, options)

    return Argument(x, change)


def _targets(y: NDArray[Any], classes: NDArray[Any] | None) -> Argument:
    def change(choose: Choose, good: NDArray[Any]) -> Changed:
        options: Options = {
            "one less": (REFUSED, lambda: good[1:]),
            "one more": (REFUSED, lambda: np.append(good, good[:1])),
            "a matrix": (REFUSED, lambda: np.stack([good, good], 1)),
            "another type": (REFUSED, lambda: evenly(choose, (None, "x", 1, {}, object(), {1}))),
            "measurements": (REFUSED, lambda: np.linspace(0.1, 0.7, len(good))),
            "not finite": (REFUSED, lambda: np.full(len(good), evenly(choose, (math.nan, math.inf)))),
            "a list": (SAME, good.tolist),
            "read-only": (SAME, lambda: arrays.SEEN["read-only"](good.copy())),
        }
        if classes is None:
            options["one class"] = (REFUSED, lambda: np.repeat(good[:1], len(good)))
        else:
            options["no class"] = (REFUSED, lambda: np.append(good[1:], type(good[0])(99)))
        return pick(choose, options)

    return Argument(y, change)


def _other_classes(known: NDArray[Any], *, first: bool) -> Callable[[Choose, object], Changed]:
    def change(choose: Choose, _: object) -> Changed:
        return pick(
            choose,
            {
                "one more": (EITHER, lambda: np.append(known, known[:1] + known[-1:])),
                "one less": (EITHER if first else REFUSED, lambda: known[1:]),
                "no classes": (REFUSED, lambda: evenly(choose, ([], 1, "x", {}, object(), [[1]], [None, None]))),
                "the same, in another order": (SAME, lambda: known[::-1]),
                "None": (REFUSED if first else SAME, lambda: None),
            },
        )

    return change


def _parameters(choose: Choose) -> Arguments:
    return {
        "prior_precision": changes.number(choose(st.sampled_from([0.1, 10.0])), above_zero=True, low=1e-3, high=1e6),
        "curvature": changes.choice(choose(st.sampled_from(CURVATURES))),
        "fit_bias": changes.flag(choose(st.booleans())),
        "standardize": changes.standardize(choose(st.sampled_from([True, False, "columns"]))),
    }


def _of_updates(choose: Choose) -> Arguments:
    return {
        "step": changes.choice(choose(st.sampled_from(UPDATE_STEPS))),
        "gamma": changes.number(choose(st.sampled_from([1.0, 0.5])), low=1e-6, high=1e6),
        "link": changes.choice(choose(st.sampled_from(["plugin", "mean_field"]))),
    }


def _training(p: Small) -> tuple[NDArray[Any], NDArray[Any]]:
    """The rows of the problem, and one row of every class."""
    rows = torch.cat([p.x, (torch.arange(p.n_classes, dtype=p.x.dtype)[:, None] + 1).expand(-1, p.x.shape[1])])
    labels = torch.cat([p.y, torch.arange(p.n_classes)]).numpy()
    return rows.numpy(), labels + 3


def _fitted(choose: Choose, p: Small) -> LaplaceClassifier:
    return LaplaceClassifier(prior_precision=choose(st.sampled_from([0.1, 10.0]))).fit(*_training(p))


def _classifier(good: LaplaceClassifier) -> Argument:
    return Argument(good, lambda *_: Changed(LaplaceClassifier(), REFUSED, "not fitted"))


def _fit(choose: Choose, p: Small) -> Arguments:
    X, y = _training(p)
    classifier = _fitted(choose, p) if choose(st.booleans()) else LaplaceClassifier()
    refit = Argument(classifier, lambda *_: Changed(LaplaceClassifier(gamma=0.5), EITHER, "another one"))
    parameters = _parameters(choose) | _of_updates(choose)
    return {"classifier": refit, "X": _features(X), "y": _targets(y, None), **parameters}


def _partial_fit(choose: Choose, p: Small) -> Arguments:
    classifier, y = _fitted(choose, p), p.y.numpy() + 3
    known, first = classifier.classes_, choose(st.booleans())
    if first:
        classifier = LaplaceClassifier()
    return {
        "classifier": Argument(
            classifier, lambda _, good: Changed(copy.deepcopy(good).set_params(fit_bias=False), EITHER, "another one")
        ),
        "X": _features(p.x.numpy().copy()),
        "y": _targets(y, known),
        "classes": Argument(
            known if first else choose(st.sampled_from([None, known])), _other_classes(known, first=first)
        ),
        **_of_updates(choose),
    }


def _predict(choose: Choose, p: Small) -> Arguments:
    made = {"classifier": _classifier(_fitted(choose, p)), "X": _features(p.x.numpy().copy())}
    return made | {"link": _of_updates(choose)["link"]}


@contextmanager
def _with_parameters(classifier: LaplaceClassifier, parameters: Mapping[str, object]) -> Iterator[None]:
    """The classifier with other parameters during a call: campaigns treat parameters as arguments of the call."""
    before = classifier.get_params()
    try:
        classifier.set_params(**parameters)
        yield
    finally:
        classifier.set_params(**before)


def _learned(name: str) -> Callable[..., object]:
    """Call ``fit`` or ``partial_fit``, and return the posterior after it."""

    def call(classifier: LaplaceClassifier, X: Any, y: Any, classes: Any = None, **parameters: Any) -> object:
        with _with_parameters(classifier, parameters):
            getattr(classifier, name)(X, y, **({} if name == "fit" else {"classes": classes}))
        return classifier.posterior_

    return call


def _predicted(name: str) -> Callable[..., object]:
    def call(classifier: LaplaceClassifier, X: Any, **parameters: Any) -> object:
        with _with_parameters(classifier, parameters):
            return torch.from_numpy(getattr(classifier, name)(X))

    return call


FUNCTIONS = {
    "LaplaceClassifier.fit": Function(_learned("fit"), _fit, moves="classifier"),
    "LaplaceClassifier.partial_fit": Function(_learned("partial_fit"), _partial_fit, moves="classifier"),
    "LaplaceClassifier.predict_proba": Function(_predicted("predict_proba"), _predict),
    "LaplaceClassifier.decision_function": Function(_predicted("decision_function"), _predict),
}
