"""The structure of the paper's code in plain torch: what the published implementation makes a machine do.

Written by us after Huseljic et al. (arXiv 2210.06112), fairer than the original: no DataLoader, no model object, ready
tensors. What makes it slow is kept: a Python loop over the observations with D x D temporaries, a fresh covariance in
every call, evaluation in batches of 128, a full batch x batch covariance for its diagonal, [N, C D] gradient embeddings
and a chain of D x D products per candidate. The mathematics is repaired until it agrees with ours: 1 + s v in the step
and in the covariance, and the curvature of the covariance taken at the new mean.
"""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from benchmarks.harness.workload import Picks
from lapal_ext import likelihood
from lapal_ext.likelihood import MEAN_FIELD_FACTOR

BATCH = 128


def top_curvature(logits: Tensor) -> Tensor:
    top = logits.softmax(-1).amax(-1)
    return top * (1.0 - top)


def update(
    mean: Tensor,  # [C, D]
    covariance: Tensor,  # [D, D]
    features: Tensor,  # [n, D]
    targets: Tensor,  # [n]
    step: str = "newton",
) -> tuple[Tensor, Tensor]:
    for phi, target in zip(features, targets, strict=True):
        direction = covariance @ phi
        variance = phi @ direction
        logits = mean @ phi
        if step == "newton":
            length = 1.0 / (1.0 + top_curvature(logits) * variance)
        else:  # the line search is ours, so this arm borrows it
            length = likelihood.step_length(logits, variance, target, 1.0, step, "categorical")
        residual = one_hot(target, len(mean)) - logits.softmax(0)
        mean = mean + length * torch.outer(residual, direction)
        s = top_curvature(mean @ phi)
        covariance = covariance - s / (1.0 + s * variance) * torch.outer(direction, direction)
    return mean, covariance


def lean_update(
    mean: Tensor,  # [C, D]
    covariance: Tensor,  # [D, D]
    features: Tensor,  # [n, D]
    targets: Tensor,  # [n]
) -> tuple[Tensor, Tensor]:
    """The same loop as a careful programmer writes it: one copy, then one D x D temporary per observation."""
    mean, covariance = mean.clone(), covariance.clone()
    for phi, target in zip(features, targets.tolist(), strict=True):
        direction = covariance @ phi
        variance = phi @ direction
        residual = (mean @ phi).softmax(0)
        top = residual.amax()
        length = 1.0 / (1.0 + top * (1.0 - top) * variance)
        residual[target] -= 1.0
        mean -= torch.outer(length * residual, direction)
        s = top_curvature(mean @ phi)
        covariance -= torch.outer(s / (1.0 + s * variance) * direction, direction)
    return mean, covariance


def predict_logits(
    mean: Tensor,  # [C, D]
    features: Tensor,  # [N, D]
) -> Tensor:  # [N, C]
    return torch.cat([batch @ mean.T for batch in features.split(BATCH)])


def predict_proba(
    mean: Tensor,  # [C, D]
    covariance: Tensor,  # [D, D]
    features: Tensor,  # [N, D]
) -> Tensor:  # [N, C]
    """Mean-field predictive, with the covariance of every batch in full."""
    probabilities = []
    for batch in features.split(BATCH):
        variance = (batch @ covariance @ batch.T).diagonal()
        probabilities.append((batch @ mean.T / (1.0 + MEAN_FIELD_FACTOR * variance).sqrt()[:, None]).softmax(1))
    return torch.cat(probabilities)


def bald(
    logits: Tensor,  # [N, C]
    variance: Tensor,  # [N]
    noise: Tensor,  # [S, C]
) -> Tensor:  # [N]
    """Entropy of the mean predictive less the mean entropy, from [128, S, C] samples."""
    scores = []
    for z, v in zip(logits.split(BATCH), variance.split(BATCH), strict=True):
        log_p = (z[:, None] + v.sqrt()[:, None, None] * noise).log_softmax(2)
        p = log_p.exp()
        mean = p.mean(1)
        scores.append((p * log_p).sum(2).mean(1) - (mean * mean.log()).sum(1))
    return torch.cat(scores)


def select_margin(
    mean: Tensor,  # [C, D]
    covariance: Tensor,  # [D, D]
    pool: Tensor,  # [N, D]
    labels: Tensor,  # [N]
    count: int,
) -> Picks:
    """Score the whole pool, pick, reveal the label, update, repeat."""
    picks: list[int] = []
    utilities = []
    for _ in range(count):
        top = predict_logits(mean, pool).softmax(1).topk(2, dim=1).values
        margin = top[:, 0] - top[:, 1]
        margin[picks] = torch.inf
        picks.append(int(margin.argmin()))
        utilities.append(1.0 - margin[picks[-1]])
        mean, covariance = update(mean, covariance, pool[picks[-1:]], labels[picks[-1:]])
    return Picks(torch.tensor(picks), torch.stack(utilities))


def look_ahead(
    mean: Tensor,  # [C, D]
    covariance: Tensor,  # [D, D]
    pool: Tensor,  # [N, D]
    labels: Tensor,  # [N]
    batches: Tensor,  # [M, b]
    eval_features: Tensor,  # [E, D]
    eval_targets: Tensor,  # [E]
) -> Tensor:  # [M]
    """Mean cross-entropy after each candidate batch: update a copy, predict every evaluation point."""
    losses = []
    for batch in batches:
        after, _ = update(mean, covariance.clone(), pool[batch], labels[batch])
        losses.append(torch.nn.functional.cross_entropy(predict_logits(after, eval_features), eval_targets))
    return torch.stack(losses)


def expected_error(
    mean: Tensor,  # [C, D]
    covariance: Tensor,  # [D, D]
    candidates: Tensor,  # [n, D]
    eval_features: Tensor,  # [E, D]
) -> Tensor:  # [n]
    """Expected 0-1 loss after one more label, with separate predictions for every label of every candidate: O(n E C^2).

    Not the authors' code: it does no D x D work per label, since the columns are one GEMM.
    """
    logits = eval_features @ mean.T
    columns = candidates @ covariance @ eval_features.T
    scores = []
    for phi, column in zip(candidates, columns, strict=True):
        z = mean @ phi
        p = z.softmax(0)
        length = 1.0 / (1.0 + top_curvature(z) * (phi @ covariance @ phi))
        residuals = torch.eye(len(p)) - p  # one row per label
        moved = logits + length * residuals[:, None, :] * column[:, None]  # [C, E, C]
        scores.append(p @ (1.0 - moved.softmax(2).amax(2)).mean(1))
    return torch.stack(scores)


def badge(
    logits: Tensor,  # [N, C]
    pool: Tensor,  # [N, D]
    thresholds: Tensor,  # [count - 1], uniform
) -> Tensor:  # [count]
    """k-means++ on gradient embeddings [N, C D]; the first centre is the longest one."""
    p = logits.softmax(1)
    gradient = one_hot(p.argmax(1), p.shape[1]) - p
    embeddings = (gradient[:, :, None] * pool[:, None, :]).flatten(1)
    picks = [int(embeddings.square().sum(1).argmax())]
    distance = torch.full((len(pool),), torch.inf)
    for threshold in thresholds:
        distance = torch.minimum(distance, _squared_distance(embeddings, picks[-1]))
        running = distance.double().cumsum(0)
        picks.append(int((running > threshold * running[-1]).int().argmax()))
    return torch.tensor(picks)


def _squared_distance(embeddings: Tensor, centre: int) -> Tensor:
    """In one pass and without a temporary; the other modes of cdist are slower and lose digits."""
    one = embeddings[centre : centre + 1]
    return torch.cdist(embeddings, one, compute_mode="donot_use_mm_for_euclid_dist")[:, 0].square()


def bait(
    covariance: Tensor,  # [D, D], the inverse of the information held so far
    weighted: Tensor,  # [N, D], sqrt(s_n) phi_n: Fisher information of row n is its outer product
    count: int,
) -> Tensor:  # [count]
    """Forward selection by the drop of tr(A^-1 F), with the published order of products: D^2 work per candidate.

    The original's second half is left out: it picks twice as many rows and removes half of them again.
    """
    fisher = weighted.T @ weighted / len(weighted)
    rows = weighted[:, None, :]  # [N, rank, D]; the binary surrogate has rank one
    picks: list[int] = []
    for _ in range(count):
        inner = torch.linalg.inv(torch.eye(1) + rows @ covariance @ rows.mT)
        gains = (rows @ covariance @ fisher @ covariance @ rows.mT @ inner)[:, 0, 0]
        gains[picks] = -torch.inf
        picks.append(int(gains.argmax()))
        row = weighted[picks[-1]]
        direction = covariance @ row
        covariance = covariance - torch.outer(direction, direction) / (1.0 + row @ direction)
    return torch.tensor(picks)
