"""K-means: first centres by k-means++, then Lloyd's iterations by scikit-learn, which is only imported by the call."""

import math
import warnings

import torch
from torch import Tensor

from lapal_ext import ops


def cluster(
    points: Tensor,  # [N, D]
    n_clusters: int,
    seed: int,
    *,
    needed_by: str,
) -> Tensor:  # [N] int64
    """Assign every point to one of at most ``n_clusters`` clusters; fewer where points coincide.

    Args:
        points: [N, D], N >= n_clusters, on any device.
        n_clusters: K >= 1.
        seed: of the first centres, in [0, 2^32).
        needed_by: the argument that the error names if scikit-learn is missing.

    Returns:
        Cluster of each point, int64 [N]; the same for the same seed on the same machine.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise ImportError(f'{needed_by} needs scikit-learn: pip install "lapal_ext[cluster]"') from error
    centres = points[_first_centres(points - points.mean(0), n_clusters, seed)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # expected: points that coincide leave clusters empty
        means = KMeans(n_clusters, init=centres.cpu().numpy(), n_init=1, random_state=seed)
        assigned = means.fit_predict(points.cpu().numpy())
    return torch.from_numpy(assigned).long().to(points.device)


def _first_centres(
    points: Tensor,  # [N, D]
    n_clusters: int,
    seed: int,
) -> Tensor:  # [K] int64
    """Greedy k-means++: of 2 + log K points drawn by their squared distance, the one that lowers its sum most.

    O(N D log K) per centre. scikit-learn's own computes distances between float32 points in float64.

    Source: Arthur and Vassilvitskii (2007), "k-means++: The Advantages of Careful Seeding", section 7.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    squares = points.square().sum(1)
    nearest = torch.full_like(squares, torch.inf)
    chosen: list[Tensor] = []
    for _ in range(n_clusters):
        if not chosen:
            drawn = torch.randint(len(points), (1,), generator=generator, device="cpu").to(points.device)
        else:
            running = nearest.double().cumsum(0)
            draws = torch.rand(2 + int(math.log(n_clusters)), dtype=torch.float64, generator=generator, device="cpu")
            drawn = torch.searchsorted(running, draws.to(points.device) * running[-1]).clamp_(max=len(points) - 1)
        products = ops.inner_products.unchecked(points[drawn], points)
        distances = products.mul_(-2.0).add_(squares).add_(squares[drawn, None])
        distances = torch.minimum(distances.clamp_(min=0.0), nearest)
        best = distances.sum(1).argmin()
        nearest = distances[best]
        chosen.append(drawn[best])
    return torch.stack(chosen)
