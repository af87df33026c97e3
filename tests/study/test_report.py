import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from lapal_ext.study.configuration import Configuration
from lapal_ext.study.experiment import Finished, write_csv
from lapal_ext.study.records import Record
from lapal_ext.study.report import markdown, terminal, write_report

ACTIVE = Configuration(
    experiment="active_learning",
    data="digits",
    data_sha256=None,
    strategies=("random", "margin", "margin_true"),
    seeds=2,
    prior_precisions=(10.0,),
    initial_labels=10,
    evaluation_rows=300,
    batch_size=5,
    acquisitions=1,
    subset=100,
)
UPDATES = replace(
    ACTIVE,
    experiment="updating",
    strategies=("base", "official_30", "line_search", "refit"),
    new_labels=(5,),
    batch_size=None,
)


def row(text, heading):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {heading} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def active():
    """Two seeds of one batch."""
    ends = {"random": (0.2, 0.3), "margin": (0.4, 0.6), "margin_true": (0.6, 0.8)}
    records = [
        Record("active_learning", seed, name, 10.0, labels, accuracy, 1.5, 0.5, 0.1, area, seconds)
        for name, of_seeds in ends.items()
        for seed, end in enumerate(of_seeds)
        for labels, accuracy, area, seconds in ((10, 0.1, 0.1, None), (15, end, (end + 0.1) / 2, 0.002))
    ]
    return Finished(ACTIVE, {"torch": "2"}, records)


def updating():
    """Two seeds of five new labels."""
    ends = {"official_30": (0.5, 0.4), "line_search": (0.68, 0.69), "refit": (0.7, 0.71)}
    records = [Record("updating", seed, "base", 10.0, 10, 0.6, 1.0, 0.5, 0.1, None, None) for seed in (0, 1)]
    records += [
        Record("updating", seed, name, 10.0, 15, accuracy, 2.0 - accuracy, 0.5, 0.1, None, 0.001)
        for name, of_seeds in ends.items()
        for seed, accuracy in enumerate(of_seeds)
    ]
    return Finished(UPDATES, {"torch": "2"}, records)


def without_calibration(finished):
    records = [record._replace(ece=None) for record in finished.records]
    return finished._replace(configuration=replace(finished.configuration, calibration=False), records=records)


def printed(*reports):
    file = io.StringIO()
    Console(file=file, width=80).print(*reports)
    return file.getvalue()


def test_area_and_its_differences_are_paired():
    text = markdown(active(), "margin", [])
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
    assert row(text, "strategy")[1] == "vs margin"


def test_gap_closed_is_of_means_and_shown_only_where_there_is_one():
    text = markdown(updating(), "base", [])
    assert row(text, "line search")[:4] == ["68.5 ± 0.5", "+8.5 ± 0.5", "81 %", "1.315 ± 0.005"]
    assert row(text, "official rule, γ = 30")[2] == "-143 %"
    assert row(text, "base") == ["60.0 ± 0.0", "", "", "1.000 ± 0.000", "", "10.0 ± 0.0", "0.500 ± 0.000", ""]
    noisy = [r._replace(accuracy=0.6 + 0.2 * r.seed - 0.05) if r.strategy == "refit" else r for r in updating().records]
    assert row(markdown(updating()._replace(records=noisy), "base", []), "line search")[2] == "-"


def test_what_was_not_measured_is_empty():
    text = markdown(without_calibration(updating()), "base", [])
    assert row(text, "line search")[5:] == ["", "0.500 ± 0.000", "1.00 ± 0.00"]
    text = markdown(without_calibration(active()), "margin", [])
    assert row(text, "random")[4:] == ["", "0.500 ± 0.000", "2.0 ± 0.0"]


def test_a_single_seed_has_no_error():
    one = active()._replace(
        configuration=replace(ACTIVE, seeds=1), records=[record for record in active().records if record.seed == 0]
    )
    assert row(markdown(one, "margin", []), "random")[:2] == ["15.00", "-10.00"]


def test_notes_explain_what_is_shown_and_nothing_else():
    text = markdown(active(), "margin", [])
    assert "- label before next pick: " in text
    assert "- ECE: " in text
    assert "upper bound" not in text
    assert "gap closed" not in text
    assert "ECE" not in printed(terminal(active())), "the terminal mentions a column that it does not have"


def test_the_terminal_has_the_numbers_of_markdown_in_eighty_columns():
    text = printed(terminal(updating()), terminal(active()))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert not [character for character in text if ord(character) < 32 and character != "\n"]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "official rule, γ = 30 45.0 ± 5.0 -143 % 1.550 ± 0.050 1.00 ± 0.00" in lines
    assert "random 17.50 ± 2.50 -12.50 ± 2.50 25.0 ± 5.0 2.0 ± 0.0" in lines
    assert "5 new labels" in text


def test_missing_files_and_columns_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"timings\.csv"):
        write_report(tmp_path)
    (tmp_path / "timings.csv").write_text("experiment,seed,strategy,prior_precision,labels,seconds\n")
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"results\.csv must have the columns of an experiment"):
        write_report(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"configuration": {"a": 1}, "environment": {}}'])
def test_a_foreign_configuration_is_named(text, tmp_path):
    write_csv(tmp_path / "results.csv", active().records, Record._fields)
    write_csv(tmp_path / "timings.csv", active().records, Record._fields)
    (tmp_path / "configuration.json").write_text(text)
    with pytest.raises(ValueError, match=r"configuration\.json is no configuration of an experiment"):
        write_report(tmp_path)


def test_a_report_is_written_beside_the_results(tmp_path):
    keys = Record._fields[:5]
    write_csv(tmp_path / "results.csv", active().records, Record._fields[:-1])
    write_csv(tmp_path / "timings.csv", [r for r in active().records if r.seconds is not None], (*keys, "seconds"))
    begun = {"configuration": ACTIVE.as_json(), "environment": {"torch": "2"}}
    (tmp_path / "configuration.json").write_text(json.dumps(begun))
    written = write_report(tmp_path)
    assert written[0].name == "report.md"
    text = written[0].read_text(encoding="utf-8")
    assert all(f"]({path.name})" in text for path in written[1:])
    assert row(text, "random")[1] == "-12.50 ± 2.50"
    write_report(tmp_path, "random")
    assert row((tmp_path / "report.md").read_text(encoding="utf-8"), "margin, top-b")[1] == "+12.50 ± 2.50"
    with pytest.raises(ValueError, match="--reference must be one of random, margin, margin_true, got 'badge'"):
        write_report(tmp_path, "badge")
