import json

import numpy as np
import pytest

from lapal_ext.study import experiment_figures
from lapal_ext.study.boundaries import draw_boundaries
from lapal_ext.study.records import Record
from lapal_ext.study.strategies import BATCH_STRATEGIES, UPDATING_STRATEGIES
from lapal_ext.study.summary import _markdown, write_report

BASE = {
    "data": "digits",
    "data_sha256": None,
    "seeds": 2,
    "prior_precisions": [10.0],
    "initial_labels": 10,
    "evaluation_rows": 300,
    "feature_factor": 1.0,
    "new_labels": None,
    "batch_size": 5,
    "acquisitions": 1,
    "subset": 100,
}
ACTIVE = BASE | {"experiment": "active_learning", "strategies": ["random", "margin", "margin_true"]}
UPDATES = BASE | {
    "experiment": "updating",
    "strategies": ["base", "official_30", "line_search", "refit"],
    "new_labels": [5],
    "batch_size": None,
}


def row(text, heading):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {heading} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def active_records():
    ends = {"random": (0.2, 0.3), "margin": (0.4, 0.6), "margin_true": (0.6, 0.8)}
    return [
        Record("active_learning", seed, name, 10.0, labels, accuracy, 1.5, 0.5, 0.1, area, seconds)
        for name, of_seeds in ends.items()
        for seed, end in enumerate(of_seeds)
        for labels, accuracy, area, seconds in ((10, 0.1, 0.1, None), (15, end, (end + 0.1) / 2, 0.002))
    ]


def updating_records():
    ends = {"official_30": (0.5, 0.4), "line_search": (0.68, 0.69), "refit": (0.7, 0.71)}
    records = [Record("updating", seed, "base", 10.0, 10, 0.6, 1.0, 0.5, 0.1, None, None) for seed in (0, 1)]
    return records + [
        Record("updating", seed, name, 10.0, 15, accuracy, 2.0 - accuracy, 0.5, 0.1, None, 0.001)
        for name, of_seeds in ends.items()
        for seed, accuracy in enumerate(of_seeds)
    ]


def test_area_and_its_differences_are_paired():
    text = _markdown(active_records(), ACTIVE, {}, "margin", [])
    assert row(text, "margin, top-b")[:3] == ["30.00 ± 5.00", "", "50.0 ± 10.0"]
    assert row(text, "random")[:2] == ["17.50 ± 2.50", "-12.50 ± 2.50"]
    named = "sequential margin, true labels (label before next pick)"
    assert row(text, named) == [
        "40.00 ± 5.00",
        "+10.00 ± 0.00",
        "70.0 ± 10.0",
        "1.500 ± 0.000",
        "10.0 ± 0.0",
        "0.500 ± 0.000",
        "2.0 ± 0.0",
    ]
    assert "from margin, top-b" in text.replace("\n", " ")


def test_gap_closed_is_of_means_and_shown_only_where_there_is_one():
    text = _markdown(updating_records(), UPDATES, {}, "base", [])
    assert row(text, "line search")[:4] == ["68.5 ± 0.5", "+8.5 ± 0.5", "81 %", "1.315 ± 0.005"]
    assert row(text, "official rule, γ = 30")[2] == "-143 %"
    assert row(text, "base") == ["60.0 ± 0.0", "", "", "1.000 ± 0.000", "", "10.0 ± 0.0", "0.500 ± 0.000", ""]
    noisy = [r._replace(accuracy=0.6 + 0.2 * r.seed - 0.05) if r.strategy == "refit" else r for r in updating_records()]
    assert row(_markdown(noisy, UPDATES, {}, "base", []), "line search")[2] == "-"


@pytest.mark.parametrize(("configuration", "records"), [(ACTIVE, active_records()), (UPDATES, updating_records())])
def test_all_figures_are_pngs(configuration, records, tmp_path):
    paths = experiment_figures.draw_experiment(tmp_path, records, configuration)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {path.name for path in paths}
    assert names >= {"learning_curves.png", "time_vs_accuracy.png", "decision_boundaries.png"}
    assert ("gain_over_random.png" in names) == (configuration is ACTIVE)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_gain_over_random_is_a_paired_difference():
    figure = experiment_figures._curves(active_records(), ACTIVE, "random")
    lines = {line.get_label(): line.get_ydata() for axes in figure.axes for line in axes.get_lines()}
    assert np.allclose(lines["random"], [0.0, 0.0])
    assert np.allclose(lines["margin, top-b"], [0.0, 25.0])


def test_a_rule_that_diverges_does_not_flatten_the_others():
    figure = experiment_figures._absorbing(updating_records(), UPDATES)
    accuracy, nll = figure.axes
    low, high = accuracy.get_ylim()
    assert 60.0 - 1.5 * 11.0 <= low < 60.0 < 70.5 < high < 75.0
    assert nll.get_ylim()[0] < nll.get_ylim()[1]


def test_every_strategy_has_a_look_of_its_own():
    for names in (UPDATING_STRATEGIES, BATCH_STRATEGIES):
        looks = {(line.colour, line.marker, line.dashes) for line in map(experiment_figures._line, names)}
        assert len(looks) == len(names)


def test_an_update_moves_boundaries_towards_a_refit():
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in draw_boundaries().axes]
    before, after, refit = (float(title.splitlines()[1].split()[0]) for title in titles)
    assert before + 5.0 < after
    assert abs(after - refit) < 2.0


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"timings\.csv"):
        write_report(tmp_path)
    (tmp_path / "timings.csv").write_text("experiment,seed,strategy,prior_precision,labels,seconds\n")
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"results\.csv must have the columns of an experiment"):
        write_report(tmp_path)


def test_a_report_is_written_beside_the_results(tmp_path):
    from lapal_ext.study.experiment import MEASURES, _write_csv

    _write_csv(tmp_path / "results.csv", active_records(), MEASURES)
    _write_csv(tmp_path / "timings.csv", [r for r in active_records() if r.seconds is not None], ("seconds",))
    (tmp_path / "configuration.json").write_text(json.dumps({"configuration": ACTIVE, "environment": {"torch": "2"}}))
    written = write_report(tmp_path)
    assert written[0].name == "report.md"
    text = written[0].read_text(encoding="utf-8")
    assert all(f"]({path.name})" in text for path in written[1:])
    assert row(text, "random")[1] == "-12.50 ± 2.50"
    write_report(tmp_path, "random")
    assert row((tmp_path / "report.md").read_text(encoding="utf-8"), "margin, top-b")[1] == "+12.50 ± 2.50"
    with pytest.raises(ValueError, match="--reference must be one of random, margin, margin_true, got 'badge'"):
        write_report(tmp_path, "badge")
