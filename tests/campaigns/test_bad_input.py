"""Arguments changed at random in every public function: the right result, or a typed error and nothing changed.

pytest -m slow tests/campaigns/test_bad_input.py   # 200 and more wrong calls of every function, counted at the end
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lapal_ext import LastLayerLaplace
from tests.campaigns import (
    head_functions,
    outer_functions,
    posterior_functions,
    selection_functions,
    selector_functions,
)
from tests.campaigns.one_call import CAMPAIGN, try_calls
from tests.campaigns.tally import count_wrong

ROOMS = (posterior_functions, head_functions, selection_functions, selector_functions, outer_functions)
FUNCTIONS = {name: function for room in ROOMS for name, function in room.FUNCTIONS.items()}
WANTED = 200


@pytest.mark.parametrize("name", FUNCTIONS)
def test_quickly(name: str) -> None:
    try_calls(FUNCTIONS[name], name, 12)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_campaign(name: str) -> None:
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (_takes_any_label, "must be refused"),
        (_moves_and_raises, "changed something"),
        (_names_nothing, "must be named"),
        (_gives_nan, "not finite"),
        (_reads_memory_as_if_contiguous, "and not"),
        (_crashes, "indices|subscriptable"),
    ],
)
def test_a_planted_fault_is_found(fault: Callable[..., object], found: str) -> None:
    faulty = FUNCTIONS["condition_on"]._replace(call=fault)
    with pytest.raises((AssertionError, TypeError, IndexError), match=found):
        try_calls(faulty, fault.__name__, 1500, "bad input, planted faults")
