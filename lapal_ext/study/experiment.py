"""Run an experiment that may be killed at any moment and continued later.

The work is cut into units: one per seed and prior precision, and also per strategy where strategies share no model.
The records of a unit are one file, which is written as a whole. A run computes the units that have no file yet. When
all units are there, it writes ``results.csv``, which is the same to the byte in every run. Times differ from run to
run, so they are in a file of their own.
"""

import csv
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from threadpoolctl import threadpool_limits

from lapal_ext.atomic_file import replace_file
from lapal_ext.study.configuration import Configuration, Source, environment
from lapal_ext.study.metrics import measure
from lapal_ext.study.protocols import UPDATING, active_learning, updating
from lapal_ext.study.records import Record

CONFIGURATION, RESULTS, TIMINGS = "configuration.json", "results.csv", "timings.csv"
_UNITS = "units"
_TIMES = ("choice_seconds", "learning_seconds")
_KEYS = ("experiment", "seed", "strategy", "prior_precision", "labels")  # of a record, in both tables
_MEASURES = tuple(field for field in Record._fields if field not in (*_KEYS, *_TIMES))


class Unit(NamedTuple):
    """The smallest part of an experiment that is saved; its strategies share their models."""

    seed: int
    prior_precision: float
    strategies: tuple[str, ...]

    @property
    def file_name(self) -> str:
        """Name of the file that holds its records."""
        strategy = f"-{self.strategies[0]}" if len(self.strategies) == 1 else ""
        return f"seed{self.seed}-prior{self.prior_precision!r}{strategy}.json"


class Finished(NamedTuple):
    """An experiment that was run to its end."""

    configuration: Configuration
    environment: dict[str, str | None]
    records: list[Record]


class MismatchError(ValueError):
    """The folder holds an experiment with other settings or other versions."""


def units(configuration: Configuration) -> list[Unit]:
    """All units, in the order of the results."""
    names = configuration.strategies
    groups = [names] if configuration.experiment == UPDATING else [(name,) for name in names]
    return [
        Unit(seed, prior, group)
        for seed, prior, group in product(range(configuration.seeds), configuration.prior_precisions, groups)
    ]


def run_experiment(
    folder: Path,
    configuration: Configuration,
    source: Source,
    jobs: int = 1,
    advance: Callable[[int], object] = lambda _: None,
) -> None:
    """Compute the units that are missing in a folder, then write its results.

    Args:
        folder: exists, and is empty or holds an unfinished run of the same experiment.
        configuration: of the experiment.
        source: its data.
        jobs: processes, with one thread each.
        advance: called with the number of units done since the last call; first with those of earlier runs.

    Raises:
        MismatchError: the folder holds another experiment, or one that was run with other versions.
        BrokenProcessPool: a process died; finished units are kept.
        OSError: a file cannot be written.
    """
    _begin(folder, configuration)
    (folder / _UNITS).mkdir(exist_ok=True)
    everything = units(configuration)
    missing = [unit for unit in everything if _read_unit(folder, unit) is None]
    advance(len(everything) - len(missing))
    for _ in _complete(folder, configuration, source, missing, jobs):
        advance(1)
    records = [record for unit in everything for record in _read_unit(folder, unit) or ()]
    write_csv(folder / RESULTS, records, (*_KEYS, *_MEASURES))
    timed = [record for record in records if any(getattr(record, name) is not None for name in _TIMES)]
    write_csv(folder / TIMINGS, timed, (*_KEYS, *_TIMES))
    scratch = [f".[0-9]*.{name}" for name in (CONFIGURATION, RESULTS, TIMINGS)]
    for pattern in (*scratch, f"{_UNITS}/.[0-9]*.json"):  # left by processes that were killed while they wrote
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


def run_unit(configuration: Configuration, source: Source, unit: Unit) -> list[Record]:
    """Measure one unit."""
    parts = source.split(unit.seed, configuration.evaluation_rows, configuration.feature_factor)
    common = parts, unit.seed, configuration.initial_labels
    if configuration.new_labels is not None:
        outcomes = updating(*common, configuration.new_labels, unit.strategies, unit.prior_precision)
    else:
        assert configuration.batch_size is not None
        assert configuration.acquisitions is not None
        assert configuration.refit_every is not None
        outcomes = active_learning(
            *common,
            configuration.batch_size,
            configuration.acquisitions,
            unit.strategies[0],
            configuration.subset,
            unit.prior_precision,
            configuration.refit_every,
        )
    targets, prior = parts.test.targets, unit.prior_precision
    return list(measure(outcomes, targets, configuration.experiment, unit.seed, prior, configuration.calibration))


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch and scikit-learn to one thread: several threads are slower on matrices as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def read_experiment(folder: Path) -> Finished:
    """Read a finished experiment from its folder.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file was not written by an experiment.
    """
    with (folder / TIMINGS).open(newline="", encoding="utf-8") as file:
        times = list(csv.DictReader(file))
    with (folder / RESULTS).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        timed = {tuple(row[key] for key in _KEYS): {name: row[name] for name in _TIMES} for row in times}
        untimed = dict.fromkeys(_TIMES, "")
        records = [_record(row | timed.get(tuple(row[key] for key in _KEYS), untimed)) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        message = f"{folder / RESULTS} and {TIMINGS} must have the columns of an experiment: {error}"
        raise ValueError(message) from error
    path = folder / CONFIGURATION
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
        return Finished(Configuration.from_json(begun["configuration"]), dict(begun["environment"]), records)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no configuration of an experiment") from error


def write_csv(path: Path, records: Sequence[Record], columns: Sequence[str]) -> None:
    """Write some fields of records, one record per row; a field that is None becomes an empty cell."""

    def write(scratch: Path) -> None:
        with scratch.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([getattr(record, name) for name in columns] for record in records)

    replace_file(path, write)


def _record(row: dict[str, str]) -> Record:
    numbers = {name: None if row[name] == "" else float(row[name]) for name in (*_MEASURES, *_TIMES)}
    prior, labels = float(row["prior_precision"]), int(row["labels"])
    return Record(row["experiment"], int(row["seed"]), row["strategy"], prior, labels, **numbers)  # type: ignore[arg-type]


def _begin(folder: Path, configuration: Configuration) -> None:
    """Write the configuration, or compare it with the one that is there."""
    path = folder / CONFIGURATION
    now = {"configuration": configuration.as_json(), "environment": environment()}
    if not path.exists():
        text = json.dumps(now, indent=2) + "\n"
        replace_file(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        changes = [
            f"{name} was {before[part].get(name)!r} and is {value!r}"
            for part, values in now.items()
            for name, value in values.items()
            if before[part].get(name) != value
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MismatchError(f"{path} is no configuration of an experiment; choose another folder") from error
    if changes:
        raise MismatchError(f"{folder} holds another experiment: {'; '.join(changes)}; choose another folder")


def _complete(
    folder: Path, configuration: Configuration, source: Source, missing: Sequence[Unit], jobs: int
) -> Iterator[Unit]:
    """Compute and write units, in this process or in several; yield each one when its file is written."""
    if jobs == 1 or len(missing) <= 1:
        for unit in missing:
            yield _compute(folder, configuration, source, unit)
        return
    context = multiprocessing.get_context("spawn")
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(min(jobs, len(missing)), context, _start_process) as executor:
        futures = [executor.submit(_compute, folder, configuration, source, unit) for unit in missing]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - set(others):
                process.terminate()  # a unit may take minutes, and half a unit is worth nothing
            raise


def _start_process() -> None:
    """Ignore Ctrl-C, which the parent process handles, and exit when the parent has ended for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


_warm: set[tuple[str, ...]] = set()


def _compute(folder: Path, configuration: Configuration, source: Source, unit: Unit) -> Unit:
    """Measure one unit on one thread and write its file."""
    with one_thread():
        if unit.strategies not in _warm:
            # The first call of an op loads parts of torch. That takes seconds, which must not count as time of the op.
            run_unit(_briefest(configuration), source, unit)
            _warm.add(unit.strategies)
        records = run_unit(configuration, source, unit)
    text = json.dumps([record._asdict() for record in records])
    replace_file(folder / _UNITS / unit.file_name, lambda scratch: scratch.write_text(text, encoding="utf-8"))
    return unit


def _briefest(configuration: Configuration) -> Configuration:
    if configuration.new_labels is not None:
        return replace(configuration, new_labels=configuration.new_labels[:1])
    return replace(configuration, acquisitions=1)


def _read_unit(folder: Path, unit: Unit) -> list[Record] | None:
    """Records of a unit; None where its file is missing or cannot be read."""
    try:
        text = (folder / _UNITS / unit.file_name).read_text(encoding="utf-8")
        return [Record(**row) for row in json.loads(text)]
    except (FileNotFoundError, ValueError, TypeError):
        return None
