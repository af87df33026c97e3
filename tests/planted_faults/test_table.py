"""Every fault of the table can be planted: its file contains the replaced text once, and its tests exist."""

from pathlib import Path

import pytest

from tests.planted_faults.table import FAULTS, KINDS, Fault

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.file}: {fault.new.strip()[:40]}")
def test_it_can_be_planted(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text(encoding="utf-8").count(fault.old) == 1
    assert fault.new != fault.old
    for test in fault.tests:
        assert not test.startswith("tests/") or (ROOT / test).exists()


def test_there_are_faults_of_every_kind() -> None:
    assert {fault.kind for fault in FAULTS} == set(KINDS)
    assert len(FAULTS) >= 44
    assert len(set(FAULTS)) == len(FAULTS)
