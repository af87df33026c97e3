from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def global_generator_is_left_alone() -> Iterator[None]:
    """No op and no test of one draws from the global generator, or seeds it."""
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator was used"
