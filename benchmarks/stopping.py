"""When to stop labelling: ``python -m benchmarks.stopping FILE.npz … --labels 50 100 200 400 800 1200 1500``.

A pool is labelled from nothing (``harness/labelling.py``). The first table compares ``expected_accuracy`` with the
accuracy on the rows of the pool that have no label, in points, and counts the intervals that hold it. The second one
has, for each seed, the number of labels from which ``changed_classes`` says that more labels have stopped paying, the
accuracy on the test rows there, and what all later labels brought. Numbers of labels between those of the first table
are looked at too, a tenth apart.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.labelling import LabelledRows, labelled_rows
from lapal_ext.posterior.calibration import calibrate
from lapal_ext.selection.stopping import CHANGED, LAST, changed_classes, expected_accuracy
from lapal_ext.study.feature_file import FeatureSet, load_features

_APART = 1.1


def expected(state: LabelledRows) -> list[float]:
    """Accuracy on the rows without a label, the expected one, and the ends of its interval, in percent."""
    model, rows = state.model(), state.rows
    rest = torch.ones(len(state.pool), dtype=torch.bool)
    rest[rows] = False
    right = model.predict_logits(state.pool[rest]).argmax(1) == state.labels[rest]
    calibration = calibrate(state.prior, state.pool[rows], state.labels[rows])
    return [
        100 * float(right.double().mean()),
        *(100 * x for x in expected_accuracy(model, state.pool, calibration, rows)),
    ]


def test_accuracy(state: LabelledRows, data: FeatureSet) -> float:
    right = state.model().predict_logits(data.test.features).argmax(1) == data.test.targets
    return 100 * float(right.double().mean())


def has_settled(state: LabelledRows) -> bool:
    """Whether more labels have stopped paying."""
    earlier = state.model(round((1 - LAST) * len(state.rows)))
    return changed_classes(earlier, state.model(), state.pool) <= CHANGED


def between(counts: list[int]) -> list[int]:
    """These numbers and others, so that none is more than a tenth larger than the one before."""
    steps = int(np.ceil(np.log(counts[-1] / counts[0]) / np.log(_APART)))
    return sorted({*counts, *(round(counts[0] * _APART**step) for step in range(steps))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="feature files of lapal_ext.study")
    parser.add_argument("--labels", nargs="+", type=int, default=[50, 100, 200, 400, 800, 1200, 1500])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    stops = []
    print("| data | labels | accuracy | expected − accuracy | half width | intervals that hold it |")
    print("|---|---:|---:|---:|---:|---:|")
    for file in options.files:
        data, found = load_features(file), []
        for seed in range(options.seeds):
            compared, settled, accuracy = [], None, 0.0
            for state in labelled_rows(data, between(options.labels), seed):
                count = len(state.rows)
                if settled is None and has_settled(state):
                    settled = (count, test_accuracy(state, data))
                if count in options.labels:
                    compared.append(expected(state))
                    accuracy = test_accuracy(state, data)
            found.append(compared)
            stops.append((file.stem, seed, settled, accuracy))
        runs = np.array(found)  # [seeds, counts, 4]
        for count, run in zip(options.labels, runs.transpose(1, 0, 2), strict=True):
            accuracy, value, low, high = run.T
            held = int(((low <= accuracy) & (accuracy <= high)).sum())
            gap = value - accuracy
            print(
                f"| {file.stem} | {count} | {accuracy.mean():.1f} % | {gap.mean():+.1f} ± {gap.std():.1f} | "
                f"{(high - low).mean() / 2:.1f} | {held} of {len(run)} |",
                flush=True,
            )
    print(
        f"\n| data | seed | stopped paying at | accuracy there | gain of all later labels, up to {options.labels[-1]} |"
    )
    print("|---|---:|---:|---:|---:|")
    for name, seed, settled, accuracy in stops:
        cells = "never | – | –"
        if settled is not None:
            cells = f"{settled[0]} | {settled[1]:.1f} % | {accuracy - settled[1]:+.1f}"
        print(f"| {name} | {seed} | {cells} |")


if __name__ == "__main__":
    main()
