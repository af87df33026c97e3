import numpy as np
import pytest
from matplotlib.figure import Figure

from lapal_ext.study import figures
from lapal_ext.study.boundaries import draw_boundaries
from lapal_ext.study.strategies import BATCH_STRATEGIES, UPDATING_STRATEGIES
from tests.study.test_report import active, updating


def drawn(draw):
    figure = Figure()
    draw(figure)
    return figure


@pytest.mark.parametrize("finished", [active(), updating()], ids=["active_learning", "updating"])
def test_all_figures_are_pngs(finished, tmp_path):
    paths = figures.draw_figures(tmp_path, finished)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in paths}
    assert names >= {"learning_curves.png", "time_vs_accuracy.png", "decision_boundaries.png"}
    assert ("gain_over_random.png" in names) == (finished.configuration.experiment == "active_learning")
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_drawings_of_several_experiments_are_one_picture_of_paper_width(tmp_path):
    path = tmp_path / "learning_curves.png"
    heights = []
    for parts in ([active()], [updating()], [updating(), active()]):
        figures.write_figure(path, [figures.learning_curves(finished) for finished in parts])
        header = path.read_bytes()[:24]
        assert header.startswith(b"\x89PNG")
        assert 1300 < int.from_bytes(header[16:20], "big") < 1600
        heights.append(int.from_bytes(header[20:24], "big"))
    assert heights[2] == pytest.approx(heights[0] + heights[1], rel=0.05)
    assert list(tmp_path.iterdir()) == [path]


def test_gain_over_random_is_a_paired_difference():
    figure = drawn(figures._curves(active(), "random").draw)
    lines = {line.get_label(): line.get_ydata() for axes in figure.axes for line in axes.get_lines()}
    assert np.allclose(lines["random"], [0.0, 0.0])
    assert np.allclose(lines["margin, top-b"], [0.0, 25.0])


def test_a_rule_that_diverges_does_not_flatten_the_others():
    figure = drawn(figures._absorbing(updating()).draw)
    accuracy, nll = figure.axes
    low, high = accuracy.get_ylim()
    assert 60.0 - 1.5 * 11.0 <= low < 60.0 < 70.5 < high < 75.0
    assert nll.get_ylim()[0] < nll.get_ylim()[1]


def test_every_strategy_has_its_own_line_style():
    for names in (UPDATING_STRATEGIES, BATCH_STRATEGIES):
        looks = {(line.colour, line.marker, line.dashes) for line in map(figures._line, names)}
        assert len(looks) == len(names)


def test_an_update_moves_boundaries_towards_a_refit():
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in drawn(draw_boundaries).axes]
    before, after, refit = (float(title.splitlines()[1].split()[0]) for title in titles)
    assert before + 5.0 < after
    assert abs(after - refit) < 2.0
