"""Softmax, utilities and losses of one row in decimal arithmetic: nothing cancels, nothing underflows."""

from decimal import Context, Decimal, localcontext


def _digits(logits: list[float]) -> Context:
    """Enough digits for 1 - p_max, which may be as small as exp(-range)."""
    return Context(prec=30 + int(0.5 * (max(logits) - min(logits))), Emin=-(10**6), Emax=10**6)


def probabilities(logits: list[float]) -> list[Decimal]:
    with localcontext(_digits(logits)):
        powers = [Decimal(z).exp() for z in logits]
        return [power / sum(powers) for power in powers]


def utility(logits: list[float], kind: str, scale: float = 1.0) -> float:
    with localcontext(_digits(logits)):
        p = probabilities(logits)
        first, second = [*sorted(p, reverse=True), Decimal(0)][:2]
        if kind == "margin":
            value = 1 - (first - second)
        elif kind == "least_confident":
            value = 1 - first
        elif kind == "entropy":
            value = -sum(q * q.ln() for q in p)
        else:  # gradient_norm
            winner = p.index(first)
            gradient = [(i == winner) - q for i, q in enumerate(p)]
            value = sum(g * g for g in gradient).sqrt() * Decimal(scale)
        return float(value)


def loss(logits: list[float], label: int, kind: str) -> float:
    with localcontext(_digits(logits)):
        p = probabilities(logits)
        winner = p.index(max(p))
        if kind == "cross_entropy":
            value = -p[label].ln()
        elif kind == "zero_one":
            value = Decimal(int(winner != label))
        elif kind == "brier":
            value = sum((q - (i == label)) ** 2 for i, q in enumerate(p))
        elif kind == "expected_zero_one":
            value = 1 - max(p)
        else:
            value = -sum(q * q.ln() for q in p)
        return float(value)
