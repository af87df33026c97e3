from dataclasses import replace

import numpy as np
import pytest
from matplotlib.figure import Figure

from lapal_ext.study import figures
from lapal_ext.study.comparison import Ranking, rank
from lapal_ext.study.strategies import BATCH_STRATEGIES, UPDATING_STRATEGIES
from tests.study.test_report import active, updating


def drawn(drawing):
    figure = Figure(figsize=(drawing.width, drawing.height), layout="constrained")
    drawing.draw(figure)
    return figure


def lines(axes):
    """The values of every line, by its label."""
    return {line.get_label(): line.get_ydata() for line in axes.get_lines()}


@pytest.mark.parametrize("finished", [active(), updating()], ids=["active_learning", "updating"])
def test_all_figures_are_pngs_of_the_experiments_own_data(finished, tmp_path):
    paths = figures.draw_figures(tmp_path, finished, finished.configuration.strategies[0])
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in paths} == {"learning_curves.png", "time_vs_accuracy.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_drawings_of_several_experiments_are_one_picture_of_paper_width(tmp_path):
    path = tmp_path / "learning_curves.png"
    heights = []
    for parts in ([active()], [updating()], [updating(), active()]):
        drawings = [figures.learning_curves(part, part.configuration.strategies[0]) for part in parts]
        figures.write_figure(path, drawings)
        header = path.read_bytes()[:24]
        assert header.startswith(b"\x89PNG")
        assert 1300 < int.from_bytes(header[16:20], "big") < 1600
        heights.append(int.from_bytes(header[20:24], "big"))
    assert heights[2] == pytest.approx(heights[0] + heights[1], rel=0.05)
    assert list(tmp_path.iterdir()) == [path]


def test_curves_have_a_panel_of_paired_differences_from_the_reference():
    absolute, paired = drawn(figures.learning_curves(active(), "margin")).axes
    assert np.allclose(lines(absolute)["random"], [10.0, 25.0])
    assert np.allclose(lines(paired)["random"], [0.0, -25.0])
    assert np.allclose(lines(paired)["margin, top-b"], [0.0, 0.0])
    assert paired.get_ylabel() == "difference from margin, top-b [points]"
    assert not absolute.collections, "bands of absolute accuracy hide the differences"
    assert len(paired.collections) == 2, "a band for each arm in colour"


def test_new_labels_are_drawn_as_paired_differences_from_the_reference():
    accuracy, nll = drawn(figures.learning_curves(updating(), "refit")).axes
    assert np.allclose(lines(accuracy)["base"], [-10.5])
    assert np.allclose(lines(accuracy)["refit"], [0.0])
    assert np.allclose(lines(nll)["line search"], [0.02])


def test_a_rule_that_diverges_does_not_flatten_the_others():
    accuracy, nll = drawn(figures.learning_curves(updating(), "base")).axes
    low, high = accuracy.get_ylim()
    assert -1.5 * 11.0 <= low < 0.0 < 10.5 < high < 15.0
    assert nll.get_ylim()[0] < nll.get_ylim()[1]


NAMES = ("random", "bald", "margin", "entropy", "badge", "bait", "typiclust", "uherding", "margin_true", "bald_true")


def ranking(*best):
    """A ranking from margin, in which some arms are the best ones, and true labels are better than all."""
    order = ("margin_true", "bald_true", *best, *(name for name in NAMES if name not in best))
    return Ranking("margin", {name: np.array([-float(place)]) for place, name in enumerate(dict.fromkeys(order))})


def test_the_best_five_usable_arms_random_and_the_reference_are_in_colour_and_all_others_grey():
    looks = figures._looks(NAMES, ranking("uherding", "typiclust", "bait", "badge", "entropy"))
    bright = [name for name, look in looks.items() if look.marker]
    assert set(bright) == {"uherding", "typiclust", "bait", "badge", "entropy", "random", "margin"}
    assert list(looks)[: len(bright)] == bright, "the legend begins with them"
    assert looks["bald"].label == "bald, top-b", "a single arm has its own name"
    assert {looks[name].label for name in ("margin_true", "bald_true")} == {"true labels, unknown in practice"}
    assert looks["margin_true"].dashes == ":"
    for name in ("bald", "margin_true", "bald_true"):
        assert 0.0 < float(looks[name].colour) < 1.0, "a shade of grey"


@pytest.mark.parametrize("experiment", ["active_learning", "updating"])
def test_every_arm_in_colour_has_its_own_marker_and_line(experiment):
    if experiment == "updating":
        names, reference = UPDATING_STRATEGIES, "base"
    else:
        names, reference = (*BATCH_STRATEGIES, "margin_updated", "look_ahead_predicted_updated"), "margin"
    for first in range(len(names)):
        shifted = (*names[first:], *names[:first])
        of = rank({name: np.array([-float(place)]) for place, name in enumerate(shifted)}, reference)
        bright = [look for look in figures._looks(names, of).values() if look.marker]
        assert len(bright) >= 6
        assert len({look.marker for look in bright}) == len(bright)
        assert len({(look.colour, look.dashes) for look in bright}) == len(bright)


def test_arms_look_the_same_for_every_prior_precision():
    one = updating()
    worse = [r._replace(prior_precision=1.0, accuracy=1.0 - r.accuracy) for r in one.records]
    both = replace(one.configuration, prior_precisions=(1.0, 10.0))
    figure = drawn(figures.learning_curves(one._replace(configuration=both, records=[*worse, *one.records]), "base"))
    looks = [{(line.get_label(), line.get_marker()) for line in axes.get_lines()} for axes in figure.axes]
    assert looks == [looks[0]] * 4


def test_time_is_that_of_choosing_a_batch_and_of_learning_it_in_plain_numbers():
    figure = drawn(figures._times(active(), "margin"))
    (axes,) = figure.axes
    assert np.allclose([line.get_xdata() for line in axes.get_lines()], 1000.0 * (0.002 + 0.02))
    slow = [r._replace(learning_seconds=1.0) if r.strategy == "random" else r for r in active().records]
    figure = drawn(figures._times(active()._replace(records=slow), "margin"))
    figure.draw_without_rendering()
    ticks = {tick.get_text() for tick in figure.axes[0].get_xticklabels()}
    assert {"20", "50", "100", "1000"} <= ticks
    assert all(tick.replace(".", "").isdigit() for tick in ticks if tick)
