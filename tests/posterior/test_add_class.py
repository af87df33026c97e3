"""A class that is added later, and the names of classes."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lapal_ext import LastLayerLaplace, SequentialSelector
from tests.draws import Draw
from tests.fuzz.calls import bits
from tests.problems import make_problem

NAMES = ("a", "b", "c", "d")


@pytest.mark.parametrize("link", ["plugin", "mean_field"])
@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_a_class_without_labels_is_never_the_likeliest_and_keeps_the_odds_of_others(
    dtype: torch.dtype, link: str, shift: float
) -> None:
    """Also in a layer that adds the same term to all logits."""
    posterior, pool, *_ = make_problem(dtype=dtype)
    posterior.mean = posterior.mean + shift * torch.linspace(-1, 1, posterior.mean.shape[1], dtype=dtype)
    before, covariance = posterior.predict_proba(pool, link), posterior.covariance.clone()
    assert posterior.add_class() is posterior
    assert posterior.num_classes == 5
    after = posterior.predict_proba(pool, link)
    new = after[:, 4]
    tolerance = {"rtol": 1e-2, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(after[:, :4], before * (1 - new[:, None]), **tolerance)
    assert float(new.max()) <= 1 / 5 + 1e-6
    assert float(new.min()) > 0
    assert torch.equal(after.argmax(1), before.argmax(1))
    assert torch.equal(posterior.covariance, covariance)
    doubt = before.amax(1)
    assert float(new[doubt < doubt.median()].mean()) > float(new[doubt > doubt.median()].mean())


def test_if_all_logits_are_equal_the_new_class_is_as_likely_as_the_others(draw: Draw) -> None:
    posterior = LastLayerLaplace(3.0 * draw.normal(1, 7).expand(4, 7), bias=torch.full((4,), 2.0).double())
    p = posterior.fit(draw.normal(0, 7)).add_class().predict_proba(draw.normal(6, 7))
    torch.testing.assert_close(p, torch.full((6, 5), 0.2, dtype=torch.float64))


def test_the_new_row_is_zero_like_the_mean_of_the_prior() -> None:
    """The rows of ``fit_map`` sum to zero, also after updates, so their mean, the new row, is zero."""
    posterior, pool, labels, *_ = make_problem()
    posterior.update(pool, labels)
    size = float(posterior.mean.abs().max())
    assert float(posterior.add_class().mean[4].abs().max()) < 1e-6 * size
    posterior.update(pool[:5], torch.full((5,), 4)).add_class()
    assert float(posterior.mean[5].abs().max()) < 1e-6 * size


@pytest.mark.parametrize("step", ["line_search", "newton"])
def test_labels_of_the_new_class_are_absorbed(step: str) -> None:
    """Updates are those of a posterior that was built with this row."""
    posterior, pool, labels, points, _ = make_problem()
    posterior.update(pool[:3], labels[:3])
    weight = torch.cat([posterior.mean, posterior.mean.mean(0, keepdim=True)])
    built = LastLayerLaplace(weight[:, :-1], posterior.prior_precision, bias=weight[:, -1])
    built.centre, built.scale = posterior.centre, posterior.scale
    built.covariance, built.fitted = posterior.covariance.clone(), True
    labels = labels.clone()
    labels[::4] = 4
    for model in (posterior.add_class(), built):
        model.update(pool[3:20], labels[3:20], step)
    torch.testing.assert_close(posterior.mean, built.mean, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(posterior.predict_proba(points), built.predict_proba(points), rtol=1e-7, atol=1e-9)
    assert posterior.drift() < 1e-8


@pytest.mark.parametrize(("n_known", "gamma", "of_new", "of_old"), [(50, 1.0, 0.8, 0.7), (600, 3.0, 0.4, 0.9)])
def test_digits_without_nine_and_then_with_it(n_known: int, gamma: float, of_new: float, of_old: float) -> None:
    """After ten labels of a new digit, it is recognised about as well as by a refit."""
    data = load_digits()
    x, y = torch.tensor(data.data, dtype=torch.float64), torch.tensor(data.target)
    train, pool, test = (torch.arange(len(x)) % 3 == part for part in range(3))
    known = torch.nonzero(train & (torch.arange(len(x)) < 3 * n_known) & (y < 9)).flatten()
    nines = torch.nonzero(pool & (y == 9)).flatten()[:10]
    names = [str(digit) for digit in range(9)]
    posterior = LastLayerLaplace.fit_map(x[known], y[known], 9, class_names=names)
    posterior.add_class("9").update(x[nines], y[nines], gamma=gamma)
    both = torch.cat([known, nines])
    refit = LastLayerLaplace.fit_map(x[both], y[both], 10)

    def accuracies(model: LastLayerLaplace) -> tuple[float, float]:
        right = model.predict_proba(x[test]).argmax(1) == y[test]
        return float(right[y[test] == 9].double().mean()), float(right[y[test] < 9].double().mean())

    new, old = accuracies(posterior)
    assert new > of_new
    assert old > of_old
    assert new > accuracies(refit)[0] - 0.05
    assert old > accuracies(refit)[1] - 0.05
    assert posterior.class_names == (*names, "9")


def test_a_new_selector_continues_with_the_class() -> None:
    """A selector whose posterior has the class loads the answers of one whose posterior does not."""
    problem = make_problem()
    first = SequentialSelector(problem.posterior, problem.pool)
    for _ in range(4):
        row = int(first.ask())
        first.tell(row, int(problem.labels[row]))
    second = SequentialSelector(problem.posterior.clone().add_class(), problem.pool)
    second.load_state_dict(first.state_dict())
    row = int(second.ask())
    assert row not in first.state_dict()["rows"]
    second.tell(row, 4)
    assert second.posterior.num_classes == 5
    told = second.state_dict()
    again = problem.posterior.clone().add_class().update(problem.pool[told["rows"]], told["labels"])
    torch.testing.assert_close(second.posterior.mean, again.mean, rtol=1e-9, atol=1e-11)
    with pytest.raises(ValueError, match=r"^labels must lie in \[0, 4\)"):
        first.tell(row, 4)


def test_a_class_of_a_copy_leaves_the_posterior_unchanged() -> None:
    posterior, *_ = make_problem()
    before = bits(posterior)
    assert posterior.clone().add_class().num_classes == 5
    assert bits(posterior) == before


# Names


def test_every_constructor_accepts_names_and_copies_keep_them() -> None:
    problem = make_problem()
    x, y = problem.pool, problem.labels
    head = problem.posterior.to_linear()
    for posterior in (
        LastLayerLaplace(head.weight, bias=head.bias, class_names=NAMES).fit(x),
        LastLayerLaplace.from_linear(head, x, standardize=True, class_names=iter(NAMES)),
        LastLayerLaplace.fit_map(x, y, 4, class_names=np.array(NAMES)),
    ):
        assert posterior.class_names == NAMES
        assert {type(name) for name in posterior.class_names} == {str}
        assert posterior.clone().class_names == NAMES
        assert posterior.condition_on(x, y).class_names == NAMES
        assert posterior.add_class("e").class_names == (*NAMES, "e")
    assert problem.posterior.class_names is None
    assert problem.posterior.add_class().class_names is None


def test_a_state_keeps_names(tmp_path: Any) -> None:
    posterior, *_ = make_problem()
    posterior.class_names = NAMES
    torch.save(posterior.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other, *_ = make_problem(seed=5)
    other.load_state_dict(state)
    assert other.class_names == NAMES
    attributes = state["_extra_state"]
    other.load_state_dict({**state, "_extra_state": {**attributes, "class_names": None}})
    assert other.class_names is None


@pytest.mark.parametrize("names", [NAMES[:3], list("aabc"), [1, 2, 3, 4], "abcd", ["", *"bcd"], 4])
def test_wrong_names_change_nothing(names: object) -> None:
    posterior, *_ = make_problem()
    posterior.class_names = NAMES
    state = make_problem(seed=5).posterior.state_dict()
    before = bits(posterior)
    with pytest.raises((ValueError, TypeError), match=r"^class_names must"):
        posterior.class_names = names
    with pytest.raises((ValueError, TypeError), match=r"^class_names must"):
        posterior.load_state_dict({**state, "_extra_state": {**state["_extra_state"], "class_names": names}})
    assert bits(posterior) == before


def test_other_methods_use_the_new_number_of_classes(draw: Draw) -> None:
    posterior, pool, labels, *_ = make_problem()
    posterior.update(pool[:3], labels[:3]).add_class()
    assert posterior.to_linear().out_features == 5
    assert posterior.fit(pool).predict_latent(pool).logits.shape == (60, 5)
    assert posterior.predict_proba(pool, "mc", 7, draw.generator).shape == (60, 5)
    with pytest.raises(ValueError, match=r"^targets must lie in \[0, 5\)"):
        posterior.update(pool[:1], torch.tensor([5]))
    with pytest.raises(
        ValueError, match=r"^out\.weight must have shape \(5, 12\) to match mean \(5, 13\), got \(4, 12\)"
    ):
        posterior.to_linear(out=make_problem().posterior.to_linear())
