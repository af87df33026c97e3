"""The arm called torch: the same public calls, with every op replaced by its reference."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

from lapal_ext.ops import Op


def _reference(op: Op[..., Any], *args: Any, **kwargs: Any) -> Any:
    return op.reference(*args, **kwargs)


@contextlib.contextmanager
def references_only() -> Iterator[None]:
    """Run the references, called directly; what is checked in the real call is checked here too.

    Within one process, unlike ``LAPAL_EXT_BACKEND=reference``, so that both arms meet the same neighbours and caches;
    and kinder to torch than that, since a custom op written in Python costs some 50 us per call that a plain function
    does not.
    """
    with mock.patch.object(Op, "unchecked", _reference):
        yield
