import pytest

from tests.campaigns.tally import lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if counts := lines():
        terminalreporter.section("campaigns")
        for line in counts:
            terminalreporter.write_line(line)
