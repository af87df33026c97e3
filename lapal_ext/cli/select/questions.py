"""The selector behind questions on the terminal; it is made again where answers change its strategy or the classes."""

import argparse
from collections.abc import Sequence

from torch import Tensor

from lapal_ext.cli.select.answers import Line, rows_of
from lapal_ext.cli.select.batch import limit_of, seeded
from lapal_ext.cli.select.start import Start
from lapal_ext.selection.sequential_selector import SequentialSelector

_GROWTH = 1.2  # of the labels, after which the temperature is fitted again


class Questions:
    """Which row to ask for, given the answers so far.

    Args:
        options: of the command.
        start: what is known before all answers.
        pool: features, [N, D].
        answers: those so far, in order.
    """

    def __init__(self, options: argparse.Namespace, start: Start, pool: Tensor, answers: Sequence[Line]) -> None:
        self._options, self._start, self._pool = options, start, pool
        self._again: int | None = None  # the row whose answer was taken back, which is asked for next
        self._calibrated: tuple[int, float | None] | None = None  # number of labels, temperature
        self._told: set[int] = set()  # rows whose answers the selector has absorbed since it was made
        self._begin(answers)

    def logits(self, row: int, answers: Sequence[Line]) -> Tensor:  # [C]
        """Those of the model with these answers, which are all so far, divided by the temperature."""
        logits = self._selector.posterior.predict_logits(self._start.features_of([row]))[0]
        return logits / self._temperature(answers)

    def _temperature(self, answers: Sequence[Line]) -> float:
        """That of the last fit, which is repeated when a fifth of the labels has come since; 1 if there is none."""
        given = self._start.answers(answers)
        count = len(self._start.labelled(given).labels)
        if self._calibrated is None or count >= _GROWTH * self._calibrated[0]:
            calibration = self._start.calibration(given)
            self._calibrated = (count, None if calibration is None else calibration.temperature)
        return self._calibrated[1] or 1.0

    def ask(self) -> int:
        """The next row to ask for."""
        return int(self._selector.ask()) if self._again is None else self._again

    def add(self, answers: Sequence[Line]) -> None:
        """Absorb the last of these answers."""
        self._again = None
        if self._stage(answers) != self._stage_now:
            self._begin(answers)
        else:
            self._tell(answers[-1])

    def take_back(self, answers: Sequence[Line], row: int) -> None:
        """Go back to these answers, which are all but the last one, for ``row``."""
        if row in self._told and self._stage(answers) == self._stage_now:
            self._selector.forget(row)
            self._told.remove(row)
        else:
            self._begin(answers)
        self._again = row

    def correct(self, answers: Sequence[Line], corrected: Line) -> None:
        """Go on with these answers, of which one has been corrected, as if the older one had never been given."""
        self._calibrated = None
        if corrected.row not in self._told or self._stage(answers) != self._stage_now:
            self._begin(answers)
            return
        if not corrected.counts:
            self._selector.forget(corrected.row)
        self._tell(corrected)

    def _stage(self, answers: Sequence[Line]) -> tuple[str, int]:
        """What a selector cannot change: its strategy and the number of classes."""
        return self._start.acquisition(answers), len(self._start.classes)

    def _begin(self, answers: Sequence[Line]) -> None:
        self._stage_now = self._stage(answers)
        self._told.clear()
        given = self._start.answers(answers)
        self._selector = SequentialSelector(
            self._start.model(given),
            self._pool,
            self._stage_now[0],
            generator=seeded(self._options),
            labelled=self._start.labelled(given).features,
            memory=limit_of(self._options),
        )
        if answers:
            self._selector.skip(rows_of(answers))

    def _tell(self, line: Line) -> None:
        if line.label is None or not line.counts:
            self._selector.skip(line.row)
        else:
            self._selector.tell(line.row, line.label, line.trust)
        self._told.add(line.row)
