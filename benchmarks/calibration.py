"""Probabilities against accuracy: ``python -m benchmarks.calibration digits FILE.npz … --labels 50 100 200``.

A pool is labelled from nothing (``harness/labelling.py``). At each number of labels, the mean of the highest
probability on the rows of the pool without a label minus the accuracy there is printed, in points: above zero a model
promises too much. Averages over seeds, with their standard deviation.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.labelling import labelled_rows
from lapal_ext.posterior.calibration import fit_temperature
from lapal_ext.study.data import load_digits
from lapal_ext.study.feature_file import FeatureSet, load_features

_DIGITS = Path("digits")


def gaps(data: FeatureSet, counts: list[int], seed: int) -> list[list[float]]:
    """For each number of labels: accuracy; gap of plugin, mean field and temperature; the temperature."""
    found = []
    for state in labelled_rows(data, counts, seed):
        model = state.model()
        rest = torch.ones(len(state.pool), dtype=torch.bool)
        rest[state.rows] = False
        features, targets = state.pool[rest], state.labels[rest]
        logits = model.predict_logits(features)
        accuracy = float((logits.argmax(1) == targets).double().mean())
        temperature = fit_temperature(state.prior, state.pool[state.rows], state.labels[state.rows])
        probabilities = [
            logits.softmax(1),
            model.predict_proba(features),
            (logits / temperature).softmax(1),
        ]
        tops = [float(one.amax(1).double().mean()) for one in probabilities]
        found.append([100 * accuracy, *(100 * (top - accuracy) for top in tops), temperature])
    return found


def load(file: Path) -> FeatureSet:
    """Scikit-learn's digits, of which all rows are the pool, or a feature file."""
    if file != _DIGITS:
        return load_features(file)
    digits = load_digits()
    return FeatureSet(digits, digits, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="feature files of lapal_ext.study, or digits")
    parser.add_argument("--labels", nargs="+", type=int, default=[50, 100, 200])
    parser.add_argument("--seeds", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| data | labels | accuracy | plugin | mean field | temperature | T |\n|---|---:|---:|---:|---:|---:|---:|")
    for file in options.files:
        data = load(file)
        runs = np.array([gaps(data, options.labels, seed) for seed in range(options.seeds)])
        for count, mean, spread in zip(options.labels, runs.mean(0), runs.std(0), strict=True):
            cells = " | ".join(f"{mean[k]:+.1f} ± {spread[k]:.1f}" for k in (1, 2, 3))
            print(f"| {file.stem} | {count} | {mean[0]:.1f} % | {cells} | {mean[4]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
