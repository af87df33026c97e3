"""What the functions that select and look ahead accept, and how a campaign changes each argument."""

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch import distributed

import lapal_ext
from lapal_ext import SequentialSelector
from lapal_ext.acquisition.registry import ACQUISITIONS, draws
from lapal_ext.likelihood import STEPS
from lapal_ext.losses import EXPECTED_LOSSES, LOSSES
from lapal_ext.rules import LINKS
from lapal_ext.utilities import UTILITIES
from tests.fuzz import changes, model_changes
from tests.fuzz.changes import REFUSED, Argument, Changed, Choose
from tests.fuzz.small import Arguments, Function, Small

PLUGIN = LINKS["plugin"]
HERDING = ("uherding", "maxherding")


def _picking(choose: Choose, p: Small) -> Arguments:
    n_rows = len(p.x)
    candidates = torch.tensor(choose(st.permutations(range(n_rows)))[: choose(st.integers(1, n_rows))])
    return {
        "posterior": model_changes.model(p.posterior, foreign=True),
        "pool": changes.features(p.x),
        "step": changes.choice(choose(st.sampled_from(STEPS))),
        "gamma": changes.number(choose(st.sampled_from([1.0, 0.5]))),
        "link": changes.choice(choose(st.sampled_from(["plugin", "mean_field"]))),
        "candidates": changes.rows(candidates, n_rows),
        "generator": changes.generator(11),
        "labelled": changes.features(p.points, optional=True),
    }


def _selection(choose: Choose, p: Small, acquisition: str) -> Arguments:
    arguments = _picking(choose, p) | {"acquisition": changes.choice(acquisition, optional=True)}
    if acquisition in (*UTILITIES, *HERDING):
        arguments["memory"] = changes.number(choose(st.sampled_from([1.0, 1e9])), above_zero=True, optional=True)
    if acquisition in HERDING:
        n_rows = len(p.x)
        references = torch.tensor(choose(st.permutations(range(n_rows)))[: choose(st.integers(1, n_rows))])
        arguments["references"] = changes.rows(references, n_rows)
    if acquisition == "uherding":
        arguments["uncertainty"] = changes.choice(choose(st.sampled_from(UTILITIES)), optional=True)
    return arguments


def _no_group(choose: Choose, _: object) -> Changed:
    values = (0, 1, "", "gloo", False, True, [], object(), torch.zeros(0), distributed.ProcessGroup)
    return Changed(choose(st.sampled_from(values)), REFUSED, "no group")


def _select_batch(acquisition: str) -> Callable[[Choose, Small], Arguments]:
    def arguments(choose: Choose, p: Small) -> Arguments:
        made = _selection(choose, p, acquisition)
        free = len(made["candidates"].good)
        batch_size = choose(st.integers(1, free))
        return made | {
            "batch_size": changes.integer(batch_size, 1, free),
            "update_every": changes.integer(choose(st.integers(1, batch_size)), 1, batch_size, optional=True),
            "targets": model_changes.label_source(choose, p.y, p.n_classes),
            "progress": changes.flag(False),
            "group": Argument(None, _no_group),
        }

    return arguments


def _sequential(acquisition: str) -> Callable[[Choose, Small], Arguments]:
    return lambda choose, p: _selection(choose, p, acquisition)


def _select_lookahead(choose: Choose, p: Small) -> Arguments:
    made = _picking(choose, p)
    free = len(made["candidates"].good)
    proposals = choose(st.sampled_from([("random",), ("random", "informative"), ("badge", "margin")]))
    return made | {
        "eval_features": changes.features(p.points),
        "batch_size": changes.integer(choose(st.integers(1, free)), 1, free),
        "n_batches": changes.integer(4, len(proposals)),
        "targets": model_changes.label_source(choose, p.y, p.n_classes, asked=False),
        "proposals": changes.choice(proposals),
        "n_label_samples": changes.integer(1, 1),
    }


def _look_ahead(choose: Choose, p: Small) -> Arguments:
    size = choose(st.integers(1, len(p.x)))
    batches = torch.tensor([choose(st.permutations(range(len(p.x))))[:size] for _ in range(2)])
    loss = choose(st.sampled_from(LOSSES))
    truth = torch.arange(len(p.points)) % p.n_classes
    not_used = Argument(None, lambda _, __: Changed(truth, REFUSED, "labels that the loss does not use"))
    return _expected_error(choose, p) | {
        "batches": changes.rows(batches, len(p.x), optional=False),
        "targets": changes.labels(p.y, p.n_classes),
        "eval_targets": not_used if loss in EXPECTED_LOSSES else changes.labels(truth, p.n_classes),
        "loss": changes.choice(loss, optional=True),
    }


def _expected_error(choose: Choose, p: Small) -> Arguments:
    return {
        "posterior": model_changes.model(p.posterior, foreign=True),
        "pool": changes.features(p.x),
        "eval_features": changes.features(p.points),
        "loss": changes.choice(choose(st.sampled_from(EXPECTED_LOSSES))),
        "step": changes.choice(choose(st.sampled_from(STEPS))),
        "gamma": changes.number(choose(st.sampled_from([1.0, 0.5]))),
        "link": changes.choice(choose(st.sampled_from(["plugin", "mean_field"]))),
    }


def _ask_and_tell(**arguments: Any) -> object:
    selector = SequentialSelector(**arguments)
    row = selector.ask()
    selector.tell(row, 1)
    return row, selector.posterior


FUNCTIONS = {
    "look_ahead": Function(lapal_ext.look_ahead, _look_ahead),
    "expected_error_reduction": Function(lapal_ext.expected_error_reduction, _expected_error),
    "select_lookahead": Function(lapal_ext.select_lookahead, _select_lookahead, draws=True),
    **{
        f"select_batch ({name})": Function(lapal_ext.select_batch, _select_batch(name), draws=draws(name, PLUGIN, 0))
        for name in ACQUISITIONS
    },
    **{
        f"SequentialSelector ({name})": Function(_ask_and_tell, _sequential(name), draws=draws(name, PLUGIN, 0))
        for name in ACQUISITIONS
    },
}
