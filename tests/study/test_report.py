import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from lapal_ext.study.comparison import default_reference
from lapal_ext.study.configuration import Configuration
from lapal_ext.study.experiment import Finished, write_csv
from lapal_ext.study.records import Record
from lapal_ext.study.report import markdown, terminal, verdict, write_report

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
    refit_every=1,
)
UPDATES = replace(
    ACTIVE,
    experiment="updating",
    strategies=("base", "official_30", "line_search", "refit"),
    new_labels=(5,),
    batch_size=None,
    refit_every=None,
)


def row(text, heading):
    """The cells of the first table's row of an arm; "**" around them says that they are bold."""
    starts = f"| {heading} |", f"| **{heading}** |"
    line = next(line for line in text.splitlines() if line.startswith(starts))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def arms(text):
    """The first column of all tables, without marks."""
    return [line.split("|")[1].strip(" *") for line in text.splitlines() if line.startswith("| ")]


def in_one_line(text):
    return " ".join(text.split())


def active():
    """Two seeds of one batch."""
    ends = {"random": (0.2, 0.3), "margin": (0.4, 0.6), "margin_true": (0.6, 0.8)}
    records = [
        Record("active_learning", seed, name, 10.0, labels, accuracy, 1.5, 0.5, 0.1, area, *seconds)
        for name, of_seeds in ends.items()
        for seed, end in enumerate(of_seeds)
        for labels, accuracy, area, seconds in ((10, 0.1, 0.1, (None, None)), (15, end, (end + 0.1) / 2, (0.002, 0.02)))
    ]
    return Finished(ACTIVE, {"torch": "2"}, records)


def updating():
    """Two seeds of five new labels."""
    ends = {"official_30": (0.5, 0.4), "line_search": (0.68, 0.69), "refit": (0.7, 0.71)}
    records = [Record("updating", seed, "base", 10.0, 10, 0.6, 1.0, 0.5, 0.1, None, None, None) for seed in (0, 1)]
    records += [
        Record("updating", seed, name, 10.0, 15, accuracy, 2.0 - accuracy, 0.5, 0.1, None, None, 0.001)
        for name, of_seeds in ends.items()
        for seed, accuracy in enumerate(of_seeds)
    ]
    return Finished(UPDATES, {"torch": "2"}, records)


# Differences in accuracy from margin in each third of six batches, with two seeds.
THIRDS = {
    "random": ((-0.02, -0.04), (-0.05, -0.05), (-0.01, 0.02)),
    "margin": ((0.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
    "uherding": ((0.06, 0.08), (0.01, 0.01), (0.0, 0.02)),
    "uherding_updated": ((0.06, 0.06), (0.02, 0.02), (0.0, 0.0)),
    "margin_true": ((0.09, 0.09), (0.09, 0.09), (0.09, 0.09)),
}


def longer(seeds=2, **changes):
    """Six batches of five strategies."""
    records = []
    for name, thirds in THIRDS.items():
        for seed in range(seeds):
            gains = [0.0, *(third[seed] for third in thirds for _ in range(2))]
            curve = [0.5 + 0.05 * batch + 0.1 * seed + gain for batch, gain in enumerate(gains)]
            for batch, accuracy in enumerate(curve):
                area, seconds = sum(curve[: batch + 1]) / (batch + 1), (0.002, 0.02) if batch > 0 else (None, None)
                labels = 10 + 5 * batch
                records.append(
                    Record("active_learning", seed, name, 10.0, labels, accuracy, 1.0, 0.5, None, area, *seconds)
                )
    configuration = replace(ACTIVE, strategies=tuple(THIRDS), acquisitions=6, seeds=seeds, **changes)
    return Finished(configuration, {}, records)


def without_calibration(finished):
    records = [record._replace(ece=None) for record in finished.records]
    return finished._replace(configuration=replace(finished.configuration, calibration=False), records=records)


def printed(*reports):
    file = io.StringIO()
    Console(file=file, width=80).print(*reports)
    return file.getvalue()


def test_area_and_its_differences_are_paired():
    text = markdown(active(), "margin", [])
    assert row(text, "margin, top-b")[:3] == ["**30.00 ± 5.00**", "", "50.0 ± 10.0"]
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
        "20.0 ± 0.0",
    ]
    assert row(text, "strategy")[1] == "vs margin"


def test_gap_closed_is_of_means_and_shown_only_where_there_is_one():
    text = markdown(updating(), "base", [])
    assert row(text, "line search")[:4] == ["**68.5 ± 0.5**", "**+8.5 ± 0.5**", "81 %", "1.315 ± 0.005"]
    assert row(text, "official rule, γ = 30")[2] == "-143 %"
    assert row(text, "base") == ["60.0 ± 0.0", "", "", "1.000 ± 0.000", "", "10.0 ± 0.0", "0.500 ± 0.000", ""]
    noisy = [r._replace(accuracy=0.6 + 0.2 * r.seed - 0.05) if r.strategy == "refit" else r for r in updating().records]
    assert row(markdown(updating()._replace(records=noisy), "base", []), "line search")[2] == "-"


def test_what_was_not_measured_is_empty():
    text = markdown(without_calibration(updating()), "base", [])
    assert row(text, "line search")[5:] == ["", "0.500 ± 0.000", "1.00 ± 0.00"]
    text = markdown(without_calibration(active()), "margin", [])
    assert row(text, "random")[4:] == ["", "0.500 ± 0.000", "2.0 ± 0.0", "20.0 ± 0.0"]


def test_rows_are_in_the_order_of_the_paired_difference_and_the_best_usable_one_is_bold():
    text = markdown(longer(), "margin", [])
    true, ours = "sequential margin, true labels (label before next pick)", "uherding"
    updated = "uherding, closed-form updates, never refitted"
    order = [true, ours, updated, "margin, top-b", "random"]
    assert arms(text) == [
        "strategy",
        "---",
        *order,
        "strategy",
        "---",
        *(name for name in order if "top-b" not in name),
    ]
    assert text.count(f"**{ours}**") == 1
    assert f"**{true}**" not in text
    assert row(text, ours)[1] == "**+2.57 ± 0.57**"
    assert row(text, updated)[1] == "+2.29 ± 0.00"
    text = markdown(updating(), "base", [])
    assert arms(text)[2:] == ["refit", "line search", "base", "official rule, γ = 30"]
    assert "**refit**" not in text


def test_thirds_of_the_curve_mark_what_is_behind_and_the_best_usable_arm():
    text = markdown(longer(), "margin", [])
    title, rest = "Thirds of the curve: mean difference in accuracy from margin, top-b [points]", text
    assert title in text
    rest = text.partition(title)[2]
    assert row(rest, "strategy") == ["15 to 20 labels", "25 to 30 labels", "35 to 40 labels"]
    assert row(rest, "random") == ["-3.00 ± 1.00 ▼", "-5.00 ± 0.00 ▼", "+0.50 ± 1.50"]
    assert row(rest, "uherding") == ["**+7.00 ± 1.00**", "+1.00 ± 0.00", "**+1.00 ± 1.00**"]
    named = "uherding, closed-form updates, never refitted"
    assert row(rest, named) == ["+6.00 ± 0.00", "**+2.00 ± 0.00**", "+0.00 ± 0.00"]
    assert "- ▼: behind the reference by two standard errors." in text
    assert "▼" not in markdown(longer(seeds=1), "margin", []), "one seed has no standard error"
    assert "Thirds" not in markdown(active(), "margin", []), "one batch has no thirds"


def test_the_verdict_is_at_the_top_and_names_true_labels_apart():
    text = markdown(longer(), "margin", [])
    title, said, _ = text.split("\n\n", 2)
    assert title == "# Active learning on digits"
    assert in_one_line(said) == (
        "**Best: uherding.** It is 2.57 ± 0.57 points ahead of margin, top-b in mean accuracy over the learning curve. "
        "Within one standard error of it: uherding, closed-form updates, never refitted (+2.29 ± 0.00). "
        "Behind margin, top-b by two standard errors: random (-2.14 ± 0.14). "
        "With true labels, which are unknown in practice: "
        "sequential margin, true labels (label before next pick) (+7.71 ± 0.00)."
    )


def test_the_verdict_of_new_labels_takes_the_worst_count_and_a_refit_for_comparison():
    best, rest = verdict(updating(), "base", 10.0)
    assert best == "Best: line search."
    assert rest == (
        "It is 8.50 ± 0.50 points ahead of base in accuracy after 5 new labels. "
        "Behind base by two standard errors: official rule, γ = 30 (-15.00 ± 5.00 after 5). "
        "For comparison: refit (+10.50 ± 0.50)."
    )
    earlier = [r._replace(labels=12, accuracy=r.accuracy - 0.25) for r in updating().records if r.strategy != "base"]
    counts = replace(updating().configuration, new_labels=(2, 5))
    _, rest = verdict(updating()._replace(configuration=counts, records=[*earlier, *updating().records]), "base", 10.0)
    assert (
        "Behind base by two standard errors: line search (-16.50 ± 0.50 after 2); "
        "official rule, γ = 30 (-40.00 ± 5.00 after 2)." in rest
    )
    both = replace(updating().configuration, prior_precisions=(1.0, 10.0))
    records = [r._replace(prior_precision=prior) for prior in (1.0, 10.0) for r in updating().records]
    text = markdown(updating()._replace(configuration=both, records=records), "base", [])
    assert [f"\n\nPrior precision {prior}: **Best: line search.**" in text for prior in (1, 10)] == [True, True]


def test_the_verdict_claims_no_more_than_there_is():
    def said(finished, reference="margin"):
        return " ".join(verdict(finished, reference, 10.0))

    assert said(active()).startswith(
        "Best: margin, top-b. It is the reference, and no usable strategy is ahead of it in mean accuracy over the "
        "learning curve. Behind margin, top-b by two standard errors: random"
    )
    assert "two standard errors" not in said(longer(seeds=1))
    noisy = [
        r._replace(aulc=r.aulc + 0.1 * r.seed) if r.strategy.startswith("uherding") else r for r in longer().records
    ]
    assert "in mean accuracy over the learning curve, less than two standard errors." in said(
        longer()._replace(records=noisy)
    )
    only = replace(ACTIVE, strategies=("margin_true",))
    assert said(active()._replace(configuration=only), "margin_true").startswith("Best: none.")


@pytest.mark.parametrize(
    ("every", "names", "sentence"),
    [
        (1, ("margin",), "a refit after every batch."),
        (1, ("margin", "margin_updated"), "a refit after every batch, except where a name says never refitted."),
        (3, ("margin",), "a refit after every 3 batches and a closed-form update after each other batch."),
        (0, ("margin",), "a closed-form update after every batch and never a refit."),
        (1, ("margin_updated",), "a closed-form update after every batch and never a refit."),
    ],
)
def test_the_protocol_says_when_a_model_is_refitted(every, names, sentence):
    configuration = replace(ACTIVE, refit_every=every, strategies=names)
    records = [r._replace(strategy=name) for name in names for r in active().records if r.strategy == "margin"]
    text = markdown(Finished(configuration, {}, records), names[0], [])
    assert f"among 100 candidates each, {sentence}" in in_one_line(text)


def test_a_single_seed_has_no_error():
    one = active()._replace(
        configuration=replace(ACTIVE, seeds=1), records=[record for record in active().records if record.seed == 0]
    )
    assert row(markdown(one, "margin", []), "random")[:2] == ["15.00", "-10.00"]


def test_notes_explain_what_is_shown_and_nothing_else():
    text = markdown(active(), "margin", [])
    assert "- label before next pick: " in text
    assert "- ECE: " in text
    assert "look-ahead" not in text
    assert "gap closed" not in text
    assert "ECE" not in printed(terminal(active())), "the terminal mentions a column that it does not have"


def test_the_terminal_has_the_numbers_of_markdown_in_eighty_columns():
    text = printed(terminal(updating()), terminal(active()))
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert not [character for character in text if ord(character) < 32 and character != "\n"]
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "official rule, γ = 30 45.0 ± 5.0 -143 % 1.550 ± 0.050 1.00 ± 0.00" in lines
    assert "random 17.50 ± 2.50 -12.50 ± 2.50 2.0 ± 0.0 20.0 ± 0.0" in lines
    assert "Thirds of the curve" in printed(terminal(longer()))
    for finished in (updating(), longer()):
        best, rest = verdict(finished, default_reference(finished.configuration), 10.0)
        assert f"{best} {in_one_line(rest)}" in in_one_line(printed(terminal(finished)))
    assert "5 new labels" in text


def test_missing_files_and_columns_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"timings\.csv"):
        write_report(tmp_path)
    (tmp_path / "timings.csv").write_text("experiment,seed,strategy\n")
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"results\.csv and timings\.csv must have the columns of an experiment"):
        write_report(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"configuration": {"a": 1}, "environment": {}}'])
def test_a_foreign_configuration_is_named(text, tmp_path):
    write_csv(tmp_path / "results.csv", active().records, Record._fields)
    write_csv(tmp_path / "timings.csv", active().records, Record._fields)
    (tmp_path / "configuration.json").write_text(text)
    with pytest.raises(ValueError, match=r"configuration\.json is no configuration of an experiment"):
        write_report(tmp_path)


def test_a_report_is_written_beside_the_results(tmp_path):
    keys, times = Record._fields[:5], Record._fields[-2:]
    write_csv(tmp_path / "results.csv", active().records, Record._fields[:-2])
    write_csv(tmp_path / "timings.csv", [r for r in active().records if r.choice_seconds is not None], keys + times)
    begun = {"configuration": ACTIVE.as_json(), "environment": {"torch": "2"}}
    (tmp_path / "configuration.json").write_text(json.dumps(begun))
    written = write_report(tmp_path)
    assert written[0].name == "report.md"
    text = written[0].read_text(encoding="utf-8")
    assert all(f"]({path.name})" in text for path in written[1:])
    assert row(text, "random")[1] == "-12.50 ± 2.50"
    write_report(tmp_path, "random")
    assert row((tmp_path / "report.md").read_text(encoding="utf-8"), "margin, top-b")[1] == "**+12.50 ± 2.50**"
    with pytest.raises(ValueError, match="--reference must be one of random, margin, margin_true, got 'badge'"):
        write_report(tmp_path, "badge")
