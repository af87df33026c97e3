"""K-means by scikit-learn, which is only imported by the call."""

import warnings

import torch
from torch import Tensor


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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # expected: points that coincide leave clusters empty
        assigned = KMeans(n_clusters, n_init=1, random_state=seed).fit_predict(points.cpu().numpy())
    return torch.from_numpy(assigned).long().to(points.device)
