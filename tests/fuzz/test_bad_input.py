"""Arguments changed at random in every public function: the right result, or a typed error and nothing changed.

pytest -m slow tests/fuzz/test_bad_input.py   # 200 and more wrong calls of every function, counted at the end
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lapal_ext import LastLayerLaplace, SequentialSelector
from lapal_ext.interop.sklearn import LaplaceClassifier
from tests.fuzz import (
    classifier_functions,
    extract_function,
    head_functions,
    posterior_functions,
    selection_functions,
    selector_functions,
)
from tests.fuzz.one_call import CAMPAIGN, try_calls
from tests.fuzz.tally import count_wrong

MODULES = (
    posterior_functions,
    head_functions,
    selection_functions,
    selector_functions,
    extract_function,
    classifier_functions,
)
FUNCTIONS = {name: function for module in MODULES for name, function in module.FUNCTIONS.items()}
WANTED = 200


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_few_changed_calls_are_right_or_refused(name: str) -> None:
    try_calls(FUNCTIONS[name], name, 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_many_changed_calls_are_right_or_refused(name: str) -> None:
    try_calls(FUNCTIONS[name], name, 500)
    assert count_wrong(CAMPAIGN, name, 0) >= WANTED


# Faults that the campaign must find


def _takes_any_label(posterior: LastLayerLaplace, features: Tensor, targets: Tensor, **rest: object) -> object:
    known = isinstance(targets, Tensor) and targets.layout == torch.strided and targets.dtype == torch.int64
    labels = targets % posterior.num_classes if known else targets
    return posterior.condition_on(features, labels, **rest)


def _moves_and_raises(posterior: LastLayerLaplace, features: Tensor, targets: Tensor, **rest: object) -> object:
    posterior.mean = posterior.mean + 1e-7
    return posterior.condition_on(features, targets, **rest)


def _names_nothing(posterior: LastLayerLaplace, **rest: object) -> object:
    try:
        return posterior.condition_on(**rest)
    except (ValueError, TypeError):
        raise ValueError("something is wrong") from None


def _gives_nan(posterior: LastLayerLaplace, **rest: object) -> object:
    result = posterior.condition_on(**rest)
    result.mean[0, 0] = torch.nan
    return result


def _reads_memory_as_if_contiguous(posterior: LastLayerLaplace, features: Tensor, **rest: object) -> object:
    strided = isinstance(features, Tensor) and features.layout == torch.strided
    if strided and features.dim() == 2 and not features.is_contiguous():
        features = features.T.reshape(features.shape)
    return posterior.condition_on(features=features, **rest)


def _crashes(posterior: LastLayerLaplace, features: Tensor, **rest: object) -> object:
    return posterior.condition_on(features=features[:, :], **rest)


def _closes_before_it_looks(selector: SequentialSelector, indices: Any, labels: Any) -> object:
    picks = selector._as_picks("indices", indices)
    selector.skip(picks)
    return selector.tell(indices, labels)


def _writes_the_weight_first(posterior: LastLayerLaplace, out: Any) -> nn.Linear:
    if isinstance(out, nn.Linear) and not isinstance(out, nn.LazyLinear):
        with suppress(RuntimeError):
            out.weight.data.zero_()
    return posterior.to_linear(out)


def _notes_columns_first(classifier: LaplaceClassifier, **rest: object) -> object:
    classifier.n_features_in_ = 99
    return FUNCTIONS["LaplaceClassifier.fit"].call(classifier, **rest)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fault", "found"),
    [
        ("condition_on", _takes_any_label, "must be refused"),
        ("condition_on", _moves_and_raises, "changed something"),
        ("condition_on", _names_nothing, "must be named"),
        ("condition_on", _gives_nan, "not finite"),
        ("condition_on", _reads_memory_as_if_contiguous, "and not"),
        ("condition_on", _crashes, "indices|subscriptable"),
        ("SequentialSelector.tell", _closes_before_it_looks, "changed something"),
        ("to_linear (out)", _writes_the_weight_first, "changed something"),
        ("LaplaceClassifier.fit", _notes_columns_first, "changed something"),
    ],
)
def test_a_planted_fault_is_found(name: str, fault: Callable[..., object], found: str) -> None:
    faulty = FUNCTIONS[name]._replace(call=fault)
    with pytest.raises((AssertionError, TypeError, IndexError), match=found):
        try_calls(faulty, fault.__name__, 1500, "bad input, planted faults")
