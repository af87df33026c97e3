"""A plugin of pytest that runs some cases of each test, the same ones every time: `-p tests.packaging.some_cases`.

Of the cases of a parametrised test, it draws one in EVERY, and at least one, by a generator that is seeded with the
name of the test. So every test still runs, and a slow machine, such as an emulated one, has fewer cases to run.
"""

import math
import random
from collections import defaultdict

import pytest

EVERY = 2


def some_of(names: list[str]) -> set[str]:
    """The names of the cases that run, of all tests."""
    cases = defaultdict(list)
    for name in names:
        cases[name.partition("[")[0]].append(name)
    return {
        name
        for test, of_test in cases.items()
        for name in random.Random(test).sample(of_test, math.ceil(len(of_test) / EVERY))
    }


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept = some_of([item.nodeid for item in items])
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in kept])
    items[:] = [item for item in items if item.nodeid in kept]
