"""What an experiment is: everything that decides its numbers, with the batch sizes of arXiv 2210.06112."""

import platform
import subprocess
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lapal_ext
from lapal_ext.study.data import Split, load_digits, split, split_training
from lapal_ext.study.feature_file import checksum, load_features
from lapal_ext.study.protocols import UPDATING
from lapal_ext.study.strategies import BATCH_STRATEGIES, UPDATING_STRATEGIES

DIGITS = "digits"
DIGITS_POOL, DIGITS_EVALUATION, DIGITS_MOST_EVALUATION = 900, 300, 800
# Batch sizes of the paper by the beginning of a file's name; another set gets as many rows as it has classes.
_PAPER_BATCHES = {"cifar10": 10, "snacks": 20, "dtd": 50, "dbpedia": 10, "banking77": 200, "clinc": 150}
_FEW, _MANY = 10, 50  # the least and the most that the number of classes makes a batch
_VERSIONS = ("torch", "numpy", "scikit-learn", "torchmetrics")


@dataclass(frozen=True)
class Configuration:
    """All that decides the results; what an experiment does not use is None."""

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
    subset: int | None = None  # candidates per query

    def __post_init__(self) -> None:
        known = UPDATING_STRATEGIES if self.experiment == UPDATING else BATCH_STRATEGIES
        if unknown := [name for name in self.strategies if name not in known]:
            raise ValueError(f"--arms must be of {', '.join(known)}, got {', '.join(unknown)}")

    def pool_rows(self, rows: int) -> int:
        """How many of the rows that ``Source.shape`` gives may be labelled."""
        return rows - (0 if self.data == DIGITS else self.evaluation_rows)

    def as_json(self) -> dict[str, Any]:
        """Plain values, lists in place of tuples."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def check_rows(self, rows: int) -> None:
        """Raise ValueError unless ``Source.shape`` gives as many rows as are kept and labelled."""
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
    """Where the data is; ``path`` is None for scikit-learn's digits."""

    path: str | None

    @property
    def name(self) -> str:
        """What the configuration calls it."""
        return DIGITS if self.path is None else Path(self.path).name

    def sha256(self) -> str | None:
        """Checksum of the file."""
        return None if self.path is None else checksum(self.path)

    def split(self, seed: int, evaluation_rows: int, feature_factor: float = 1.0) -> Split:
        """Split of one seed, with all features multiplied by a factor."""
        if self.path is None:
            parts = split(load_digits(), seed, DIGITS_POOL, evaluation_rows)
        else:
            parts = split_training(_load(self.path), seed, evaluation_rows)
        if feature_factor == 1.0:
            return parts
        pool, evaluation, test = (part._replace(features=part.features * feature_factor) for part in parts[:3])
        return Split(pool, evaluation, test, parts.num_classes)

    def shape(self) -> tuple[int, int]:
        """Rows of the digits' pool or of a file's training part, which evaluation rows are taken from; and classes."""
        if self.path is None:
            return DIGITS_POOL, 10
        data = _load(self.path)
        return len(data.train.targets), data.num_classes


_load = lru_cache(maxsize=1)(load_features)


def default_batch(name: str, num_classes: int) -> int:
    """The paper's batch size where it has one for a set of this name, else the number of classes, from 10 to 50."""
    for beginning, size in _PAPER_BATCHES.items():
        if name.startswith(beginning):
            return size
    return min(max(num_classes, _FEW), _MANY)


def environment() -> dict[str, str | None]:
    """What else decides the numbers to the last bit: versions, commit, kernels, machine."""
    info = lapal_ext.build_info()
    kernels = f"native, {info['instruction_set']}" if info["native"] else "reference"
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
    """Commit that the package's own files are at; None where they are not under version control."""
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
