"""Random arguments: float64 on the CPU, from a seeded generator; ``cast`` rounds them for a call."""

import torch
from torch import Tensor

Arguments = dict[str, object]


class Draw:
    """A seeded source of arguments."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *size: int) -> Tensor:
        return torch.randn(size, generator=self.generator, dtype=torch.float64)

    def uniform(self, *size: int) -> Tensor:
        return torch.rand(size, generator=self.generator, dtype=torch.float64)

    def integers(self, high: int, *size: int) -> Tensor:
        return torch.randint(high, size, generator=self.generator) if high else torch.zeros(size, dtype=torch.int64)

    def covariance(self, *size: int) -> Tensor:
        """Well conditioned, exactly symmetric, [*size, size[-1]]: the inverse of I + X^T X / 4."""
        *batch, dim = size
        rows = self.normal(*batch, 2 * dim + 3, dim)
        covariance = torch.linalg.inv(torch.eye(dim, dtype=torch.float64) + rows.mT @ rows / 4)
        return covariance.tril() + covariance.tril(-1).mT

    def gram(self, n_hypotheses: int, size: int, dim: int) -> Tensor:
        """X Sigma X^T of random rows, [n_hypotheses, size, size]."""
        rows = self.normal(n_hypotheses, size, dim)
        gram = rows @ self.covariance(dim) @ rows.mT
        return gram.tril() + gram.tril(-1).mT


def cast(
    op, args: Arguments, dtype: torch.dtype, pool_dtype: torch.dtype | None = None, device: str = "cpu"
) -> Arguments:
    """The arguments rounded to ``dtype``; those that may be stored in half precision to ``pool_dtype``."""
    floats = {"compute": dtype, "storage": pool_dtype or dtype}
    return {
        name: value.to(device=device, dtype=floats.get(op.shapes[name].kind, value.dtype))
        if isinstance(value, Tensor)
        else value
        for name, value in args.items()
    }
