"""How many cases every campaign tried, printed in one line each when the tests end."""

from collections import Counter

_COUNTS: dict[str, Counter[str]] = {}
_PER_FUNCTION: dict[str, Counter[str]] = {}


def count(campaign: str, what: str, number: int = 1) -> None:
    """Add to one count in the line of a campaign."""
    _COUNTS.setdefault(campaign, Counter())[what] += number


def count_wrong(campaign: str, function: str, number: int = 1) -> int:
    """Add wrong calls of one function, and return their sum; the line of a campaign shows the smallest sum."""
    _PER_FUNCTION.setdefault(campaign, Counter())[function] += number
    return _PER_FUNCTION[campaign][function]


Counts = tuple[dict[str, dict[str, int]], ...]


def counted() -> Counts:
    """All that this process counted, in plain types."""
    return tuple({name: dict(counts) for name, counts in kept.items()} for kept in (_COUNTS, _PER_FUNCTION))


def add_counted(by_another_process: Counts) -> None:
    for kept, counted_there in zip((_COUNTS, _PER_FUNCTION), by_another_process, strict=True):
        for name, counts in counted_there.items():
            kept.setdefault(name, Counter()).update(counts)


def lines() -> list[str]:
    texts = []
    for campaign, counts in sorted(_COUNTS.items()):
        parts = [f"{number:,} {what}" for what, number in counts.items()]
        if functions := _PER_FUNCTION.get(campaign):
            parts.append(f"at least {min(functions.values()):,} wrong calls of each of {len(functions)} functions")
        texts.append(f"{campaign}: {', '.join(parts)}")
    return texts
