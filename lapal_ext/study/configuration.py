"""What decides the numbers of an experiment: its settings, its data, and the versions that it runs with."""

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import lapal_ext
from lapal_ext.study.data import Split, load_digits, split, split_training
from lapal_ext.study.feature_file import checksum, load_features
from lapal_ext.study.protocols import UPDATING
from lapal_ext.study.strategies import BATCH_STRATEGIES, UPDATED, UPDATING_STRATEGIES, chooser

DIGITS = "digits"
DIGITS_POOL, DIGITS_EVALUATION, DIGITS_MOST_EVALUATION = 900, 300, 800
# Batch sizes of arXiv 2210.06112, by the beginning of a file's name. Other sets get as many rows as they have classes.
_PAPER_BATCHES = {"cifar10": 10, "snacks": 20, "dtd": 50, "dbpedia": 10, "banking77": 200, "clinc": 150}
_FEWEST, _MOST = 10, 50  # bounds of a batch size that comes from the number of classes
_VERSIONS = ("torch", "numpy", "scikit-learn", "torchmetrics")


@dataclass(frozen=True)
class Configuration:
    """Settings of an experiment; those that it does not use are None."""

    experiment: str
    data: str  # "digits", or the name of a file without its folder
    data_sha256: str | None  # of the file
    strategies: tuple[str, ...]
    seeds: int
    prior_precisions: tuple[float, ...]
    initial_labels: int
    evaluation_rows: int
    feature_factor: float = 1.0  # multiplies the features
    new_labels: tuple[int, ...] | None = None
    batch_size: int | None = None
    acquisitions: int | None = None
    subset: int | None = None  # candidates per query; None: all unlabelled rows of the pool
    refit_every: int | None = None  # batches from one refit to the next, see ``protocols.active_learning``
    calibration: bool = True  # measure the calibration error, which needs torchmetrics

    def __post_init__(self) -> None:
        if self.experiment == UPDATING:
            known, suffix = UPDATING_STRATEGIES, ""
            unknown = [name for name in self.strategies if name not in known]
        else:
            known, suffix = BATCH_STRATEGIES, f", with or without the suffix {UPDATED}"
            unknown = [name for name in self.strategies if chooser(name) not in known]
        if unknown:
            raise ValueError(f"--arms must be of {', '.join(known)}{suffix}, got {', '.join(unknown)}")

    @property
    def title(self) -> str:
        """Name of the experiment and of its data."""
        experiment = self.experiment.replace("look_ahead", "look-ahead").replace("_", " ")
        return f"{experiment.capitalize()} on {self.data}"

    def pool_rows(self, rows: int) -> int:
        """Rows that may be labelled, out of the number that ``Source.shape`` returns."""
        return rows - (0 if self.data == DIGITS else self.evaluation_rows)

    def as_json(self) -> dict[str, Any]:
        """Return all settings, with lists in place of tuples."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> Self:
        """Inverse of ``as_json``."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()
        }
        return cls(**values)

    def check_rows(self, rows: int) -> None:
        """Raise ValueError if evaluation and labels need more rows than ``Source.shape`` returns."""
        most = DIGITS_MOST_EVALUATION if self.data == DIGITS else rows - 1
        if self.evaluation_rows > most:
            raise ValueError(f"--evaluation-rows must be at most {most} of {self.data}, got {self.evaluation_rows}")
        pool_rows = self.pool_rows(rows)
        if self.new_labels is not None:
            wanted, what = self.initial_labels + max(self.new_labels), "--initial and the largest of --new-labels"
        else:
            assert self.batch_size is not None
            assert self.acquisitions is not None
            wanted = self.initial_labels + self.acquisitions * self.batch_size
            what = "--initial and --acquisitions times --batch-size"
            if self.subset is not None and self.subset < self.batch_size:
                raise ValueError(f"--subset must be at least the batch size {self.batch_size}, got {self.subset}")
        if wanted > pool_rows:
            raise ValueError(f"{what} must be at most the {pool_rows} rows of the pool together, got {wanted}")


@dataclass(frozen=True)
class Source:
    """Where the data come from: a file of features, or scikit-learn's digits if ``path`` is None."""

    path: str | None

    @property
    def name(self) -> str:
        """Name of the data in the configuration."""
        return DIGITS if self.path is None else Path(self.path).name

    def sha256(self) -> str | None:
        """Checksum of the file; None for digits."""
        return None if self.path is None else checksum(self.path)

    def split(self, seed: int, evaluation_rows: int, feature_factor: float = 1.0) -> Split:
        """Split the data by a seed, and multiply all features by a factor."""
        if self.path is None:
            parts = split(_load_digits(), seed, DIGITS_POOL, evaluation_rows)
        else:
            parts = split_training(_load_features(self.path), seed, evaluation_rows)
        if feature_factor == 1.0:
            return parts
        pool, evaluation, test = (part._replace(features=part.features * feature_factor) for part in parts[:3])
        return Split(pool, evaluation, test, parts.num_classes)

    def shape(self) -> tuple[int, int]:
        """Rows and classes. Rows are those of the pool of digits, or of the training part of a file."""
        if self.path is None:
            return DIGITS_POOL, 10
        data = _load_features(self.path)
        return len(data.train.targets), data.num_classes


_load_digits, _load_features = lru_cache(maxsize=1)(load_digits), lru_cache(maxsize=1)(load_features)


def default_batch(name: str, num_classes: int) -> int:
    """Batch size of arXiv 2210.06112 for a set of this name; for other sets the number of classes, from 10 to 50."""
    for beginning, size in _PAPER_BATCHES.items():
        if name.startswith(beginning):
            return size
    return min(max(num_classes, _FEWEST), _MOST)


def environment() -> dict[str, str | None]:
    """Versions, commit, kernels and machine: with the configuration, they decide the results to the last bit."""
    info = lapal_ext.build_info()
    kernels = f"native, {info['instruction_set']}" if info["native"] else f"reference, in torch ({info['reason']})"
    return {
        "lapal_ext": lapal_ext.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _VERSIONS},
        "kernels": kernels,
        "platform": platform.platform(),
        "processor": _processor(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of the files of this package; None if they are not in a git repository."""
    folder = Path(lapal_ext.__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", "../csrc")
        return git("rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
