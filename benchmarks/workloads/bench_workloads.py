"""The workloads W1 to W8: the whole call that a user makes, compared with what it replaces. W9 is in bench_fits.py.

Every arm of a workload gets the same data and the same step rule, and is compared with the native one before it is
timed. A target says how many times faster than an arm the native one must be.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.harness.workload import ONE_THREAD, Picks, Prepare, TimeWorkload, arms, public_call, sizes
from benchmarks.machine.rates import Work
from benchmarks.workloads import authors, best_torch, refit
from benchmarks.workloads.problems import PRIOR_PRECISION, Problem, make_problem
from lapal_ext import SequentialSelector, expected_error_reduction, look_ahead, ops, select_batch
from lapal_ext.acquisition.badge import thresholds
from lapal_ext.acquisition.registry import choose_seed
from lapal_ext.rules import LINKS


@arms("authors", "lean loop", "two products", "best torch", "torch", "native")
@sizes(
    {"authors": 15, "lean loop": 6, "two products": 0.5, "best torch": 2.5},
    {"authors": 25, "lean loop": 6, "two products": 0.5, "best torch": 2},
)
def bench_w1_update_newton(time_workload: TimeWorkload, n_features: int, n_classes: int, targets: dict) -> None:
    problem = make_problem(n_features, n_classes)
    state = problem.posterior.mean, problem.posterior.covariance
    by_hand = {"lean loop": authors.lean_update, "best torch": best_torch.update}
    time_update(
        time_workload,
        problem,
        "newton",
        targets,
        **{
            arm: lambda n, update=update: lambda: update(*state, problem.pool[:n], problem.labels[:n])
            for arm, update in by_hand.items()
        },
        **{"two products": lambda n: lambda: best_torch.products_of_update(state[1], problem.pool[:n])},
    )


@arms("authors", "torch", "native")
@sizes({}, {})
def bench_w1_update_line_search(time_workload: TimeWorkload, n_features: int, n_classes: int, targets: dict) -> None:
    """Without targets: those are for the newton step, and only our arm has a line search of its own."""
    time_update(time_workload, make_problem(n_features, n_classes), "line_search", targets)


def time_update(
    time_workload: TimeWorkload, problem: Problem, step: str, targets: dict[str, float], **by_hand: Prepare
) -> None:
    state = problem.posterior.mean, problem.posterior.covariance

    def absorb(n: int) -> Callable[[], tuple[Tensor, Tensor]]:
        def call() -> tuple[Tensor, Tensor]:
            updated = problem.posterior.condition_on(problem.pool[:n], problem.labels[:n], step=step)
            return updated.mean, updated.covariance

        return call

    n_classes, n_features = problem.posterior.mean.shape
    time_workload(
        f"W1 one call of 100 updates, {step}",
        f"{n_features}/{n_classes}",
        units=100,
        arms={
            "authors": lambda n: lambda: authors.update(*state, problem.pool[:n], problem.labels[:n], step),
            **by_hand,
            **public_call(absorb),
        },
        targets=targets,
        incomparable={"two products"},
        # Columns, half of the covariance; half of the Gram matrix, the triangle; logits and mean.
        work=Work(fmas=150 * n_features**2 + 100**2 * n_features + 200 * n_classes * n_features),
    )


@arms("authors", "torch", "native", ONE_THREAD)
@sizes({"torch": 1.5}, {"torch": 1.5})
def bench_w2a_mean_field(time_workload: TimeWorkload, n_features: int, n_classes: int, targets: dict) -> None:
    posterior, pool = (problem := make_problem(n_features, n_classes)).posterior, problem.pool
    time_workload(
        "W2a mean-field predictive, N=10,000",
        f"{n_features}/{n_classes}",
        units=10_000,
        arms={
            "authors": lambda n: lambda: authors.predict_proba(posterior.mean, posterior.covariance, pool[:n]),
            **public_call(lambda n: lambda: posterior.predict_proba(pool[:n])),
        },
        targets=targets,
        work=Work(fmas=10_000 * n_features * (n_features / 2 + n_classes), exps=10_000 * n_classes),
    )


@arms("authors", "torch", "native", ONE_THREAD)
def bench_w2b_monte_carlo_bald(time_workload: TimeWorkload) -> None:
    """The sampling alone, from given logits and variances."""
    problem = make_problem(384, 10)
    logits, variance = problem.posterior.predict_latent(problem.pool)
    noise = torch.randn(1000, 10, generator=torch.Generator().manual_seed(1))

    def bald(n: int) -> Callable[[], Tensor]:
        def call() -> Tensor:
            mean, entropy = ops.mc_predictive(logits[:n], variance[:n], noise)
            return torch.special.entr(mean).sum(1) - entropy

        return call

    time_workload(
        "W2b Monte Carlo predictive + BALD, S=1000, N=10,000",
        "384/10",
        units=10_000,
        checked=256,
        arms={"authors": lambda n: lambda: authors.bald(logits[:n], variance[:n], noise), **public_call(bald)},
        targets={"authors": 60},
        work=Work(fmas=1000 * 10_000 * 10 * 10, exps=1000 * 10_000 * 10),
        rounds={"authors": 3, "torch": 1, "native": 5},
    )


@arms("authors", "torch", "native", ONE_THREAD)
def bench_w3_sequential_margin(time_workload: TimeWorkload) -> None:
    problem = make_problem(384, 10)
    state = problem.posterior.mean, problem.posterior.covariance

    def select(n: int) -> Callable[[], Picks]:
        return lambda: Picks(
            *select_batch(problem.posterior, problem.pool, n, targets=problem.labels, step="newton")[:2]
        )

    time_workload(
        "W3 sequential margin, pool 10,000, b=100",
        "384/10",
        units=100,
        checked=20,
        arms={
            "authors": lambda n: lambda: authors.select_margin(*state, problem.pool, problem.labels, n),
            **public_call(select),
        },
        targets={"authors": 4},
        work=Work(passes=(100, problem.pool)),
        rounds={"authors": 3, "torch": 3},
    )


@arms("read once", "native f32", "native")
@pytest.mark.parametrize("storage", ["f32", "bf16"])
def bench_w3_large_pool(time_workload: TimeWorkload, storage: str) -> None:
    """Picks from a pool larger than the cache, without the start of the selection."""
    problem = make_problem(384, 10, n_pool=200_000, n_eval=1)
    half = problem.pool.bfloat16()
    pools = {"bf16": half, "f32": half.float()}  # the same numbers, so that the picks are the same

    def select_from(kind: str) -> Prepare:
        def prepare(n: int) -> Callable[[], Tensor]:
            selector = SequentialSelector(problem.posterior, pools[kind], step="newton")

            def call() -> Tensor:
                picks = []
                for _ in range(n):
                    picks.append(int(selector.ask()))
                    selector.tell(picks[-1], int(problem.labels[picks[-1]]))
                return torch.tensor(picks)

            return call

        return prepare

    flat = pools["f32"].view(-1)
    time_workload(
        f"W3 each of 10 picks, pool 200,000 in {storage}",
        "384/10",
        units=10,
        arms={
            "read once": lambda n: lambda: torch.stack([flat.sum() for _ in range(n)]),
            "native f32": select_from("f32"),
            "native": select_from(storage),
        },
        targets={"read once": 1 / 1.5} if storage == "f32" else {"native f32": 1.5},
        incomparable={"read once"},
        work=Work(bytes_read=10 * pools[storage].nbytes),
        rounds={"read once": 5, "native f32": 5, "native": 5},
    )


@arms("authors", "refit", "scikit-learn", "best torch", "torch", "native", ONE_THREAD)
@sizes({"authors": 18, "best torch": 7, ONE_THREAD: 1.7}, {"authors": 35, "best torch": 2.5, ONE_THREAD: 1.7})
def bench_w4_look_ahead(time_workload: TimeWorkload, n_features: int, n_classes: int, targets: dict) -> None:
    problem = make_problem(n_features, n_classes)
    posterior, pool, labels = problem.posterior, problem.pool, problem.labels
    evaluation = problem.eval_features, problem.eval_targets
    generator = torch.Generator().manual_seed(2)
    batches = torch.stack([torch.randperm(1000, generator=generator)[:10] for _ in range(300)])

    def call(n: int) -> Callable[[], Tensor]:
        return lambda: look_ahead(
            posterior, pool, batches[:n], labels, *evaluation, loss="cross_entropy", step="newton"
        )

    state = posterior.mean, posterior.covariance
    labelled = problem.features, problem.targets
    refits = {
        "refit": lambda x, y: refit.refit(posterior, x, y),
        "scikit-learn": lambda x, y: refit.scikit_learn(x, y, PRIOR_PRECISION),
    }
    moved = 300 * 10_000 * n_classes  # logits, each changed by ten columns
    time_workload(
        "W4 look-ahead, 300 batches × 10, E=10,000",
        f"{n_features}/{n_classes}",
        units=300,
        checked=3,
        arms={
            "authors": lambda n: lambda: authors.look_ahead(*state, pool, labels, batches[:n], *evaluation),
            "best torch": lambda n: lambda: best_torch.look_ahead(*state, pool, labels, batches[:n], *evaluation),
            **{
                arm: lambda n, fit=fit: lambda: refit.look_ahead(fit, *labelled, pool, labels, batches[:n], *evaluation)
                for arm, fit in refits.items()
            },
            **public_call(call),
        },
        targets=targets,
        work=Work(fmas=10_000 * (1000 + n_classes) * n_features + 10 * moved, exps=moved),
        rounds={"authors": 3, "best torch": 5, "torch": 2, **dict.fromkeys(refits, 1)},
        timed=dict.fromkeys(refits, 30),
        incomparable=refits,
    )


@arms("O(C²) form", "torch", "native", ONE_THREAD)
@pytest.mark.parametrize(
    ("n_classes", "targets", "timed"),
    [
        pytest.param(10, {"O(C²) form": 80, "torch": 5, ONE_THREAD: 1.7}, 1000, id="384-10"),
        pytest.param(100, {"O(C²) form": 500, "torch": 5, ONE_THREAD: 1.7}, 20, id="384-100"),
    ],
)
def bench_w5_expected_error(time_workload: TimeWorkload, n_classes: int, targets: dict, timed: int) -> None:
    problem = make_problem(384, n_classes)
    posterior, evaluation = problem.posterior, problem.eval_features[:1000]
    state = posterior.mean, posterior.covariance
    time_workload(
        "W5 expected error reduction, 1000 candidates, E=1000",
        f"384/{n_classes}",
        units=1000,
        checked=10,
        arms={
            "O(C²) form": lambda n: lambda: authors.expected_error(*state, problem.pool[:n], evaluation),
            **public_call(lambda n: lambda: expected_error_reduction(posterior, problem.pool[:n], evaluation)),
        },
        targets=targets,
        work=Work(fmas=1000 * 1000 * (384 + 15 * n_classes), exps=1000 * 1000 * n_classes),
        rounds={"O(C²) form": 3, "torch": 1, "native": 5},
        timed={"O(C²) form": timed},
    )


@arms("authors", "torch", "native", ONE_THREAD)
def bench_w6_badge(time_workload: TimeWorkload) -> None:
    """The time includes logits, gradients and norms. All arms draw with the same thresholds. Embeddings take 154 MB."""
    problem = make_problem(384, 10)
    posterior, pool = problem.posterior, problem.pool

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    draws = thresholds(choose_seed("badge", LINKS["plugin"], len(pool), generator()), 100, torch.float32)[1:]
    time_workload(
        "W6 BADGE, pool 10,000, b=100",
        "384/10",
        units=100,
        checked=10,
        arms={
            "authors": lambda n: lambda: authors.badge(posterior.predict_logits(pool), pool, draws[: n - 1]),
            **public_call(
                lambda n: (
                    lambda: (
                        select_batch(posterior, pool, n, "badge", None, update_every=n, generator=generator()).indices
                    )
                )
            ),
        },
        targets={"authors": 25},
        work=Work(fmas=10_000 * 10 * 384, exps=10_000 * 10, passes=(100, pool)),
        rounds={"authors": 1},
    )


@arms("authors", "torch", "native", ONE_THREAD)
def bench_w6_bait(time_workload: TimeWorkload) -> None:
    problem = make_problem(384, 10)
    posterior, pool = problem.posterior, problem.pool
    top = authors.top_curvature(posterior.predict_logits(pool))
    weighted = pool * top.sqrt()[:, None]
    time_workload(
        "W6 BAIT (binary Fisher), pool 10,000, b=100",
        "384/10",
        units=100,
        checked=10,
        arms={
            "authors": lambda n: lambda: authors.bait(posterior.covariance, weighted, n),
            **public_call(lambda n: lambda: select_batch(posterior, pool, n, "bait", None, update_every=n).indices),
        },
        targets={"authors": 250},
        work=Work(fmas=3 * 10_000 * 384**2 / 2, passes=(100, pool)),  # the Fisher matrix and two variances
        rounds={"authors": 1},
        timed={"authors": 20},
    )


@arms("authors", "refit", "scikit-learn", "torch", "native")
@pytest.mark.parametrize("step", ["newton", "line_search"])
def bench_w7_absorb(time_workload: TimeWorkload, step: str) -> None:
    problem = make_problem(384, 10)
    x, y = problem.pool[:10], problem.labels[:10]
    everything = torch.cat([problem.features, x]), torch.cat([problem.targets, y])

    state = problem.posterior.mean, problem.posterior.covariance
    refitted = refit.refit(problem.posterior, *everything)
    updated = problem.posterior.condition_on(x, y, step=step).mean
    guesses = [(problem.eval_features @ mean.T).argmax(1) for mean in (updated, refitted, problem.posterior.mean)]
    agreement = [100 * float((guess == guesses[1]).float().mean()) for guess in (guesses[0], guesses[2])]
    time_workload(
        f"W7 absorb 10 labels at 100 labelled, {step}",
        "384/10",
        units=10,
        arms={
            "authors": lambda _: lambda: authors.update(*state, x, y, step)[0],
            "refit": lambda _: lambda: refit.refit(problem.posterior, *everything),
            "scikit-learn": lambda _: lambda: refit.scikit_learn(*everything, PRIOR_PRECISION),
            **public_call(lambda _: lambda: problem.posterior.condition_on(x, y, step=step).mean),
        },
        targets={"scikit-learn": 8},
        incomparable={"refit", "scikit-learn"},
        note=f"{agreement[0]:.1f} % of predictions equal the refit's ({agreement[1]:.1f} % before the update)",
    )


@arms("kernel matrix", "its product", "torch", "native", ONE_THREAD)
@pytest.mark.parametrize(
    ("spread", "targets"),
    [
        pytest.param(1.0, {"kernel matrix": 30, "its product": 1 / 1.5, ONE_THREAD: 1.6}, id="clusters"),
        pytest.param(0.2, {ONE_THREAD: 1.6}, id="no-clusters"),
    ],
)
def bench_w8_uncertainty_herding(time_workload: TimeWorkload, spread: float, targets: dict) -> None:
    """The whole call, with references that are the pool. The leanest plain torch keeps the kernel matrix, 400 MB.

    Points without clusters are the hardest case: all of them are equally far from each other, so every pick changes
    every gain a little, and many gains are computed anew.
    """
    problem = make_problem(384, 10, spread=spread)
    posterior, pool, labelled = problem.posterior, problem.pool, problem.features

    def select(n: int) -> Callable[[], Picks]:
        return lambda: Picks(*select_batch(posterior, pool, n, "uherding", labelled=labelled)[:2])

    clusters = "ten clusters" if spread == 1.0 else "no clusters"
    time_workload(
        f"W8 uncertainty herding, pool 10,000 ({clusters}), b=100",
        "384/10",
        units=100,
        checked=10,
        arms={
            "kernel matrix": lambda n: lambda: Picks(*best_torch.herd(posterior, pool, labelled, n)),
            "its product": lambda _: lambda: best_torch.product_of_herding(pool),
            **public_call(select),
        },
        targets=targets,
        incomparable={"its product"},
        work=Work(fmas=10_000 * 10_000 * 384 / 2, exps=10_000 * 10_000 / 2),  # the kernel matrix is symmetric
        rounds={"kernel matrix": 1, "its product": 3, "torch": 1, "native": 3},
    )


@arms("kernel matrix", "native")
def bench_w8_answers(time_workload: TimeWorkload) -> None:
    """Questions to a person, one at a time, with the start. Every answer changes the uncertainty of every reference."""
    problem = make_problem(384, 10, spread=1.0)
    posterior, pool, labels, labelled = problem.posterior, problem.pool, problem.labels, problem.features

    def ask(n: int) -> Callable[[], Tensor]:
        def call() -> Tensor:
            selector = SequentialSelector(posterior, pool, "uherding", labelled=labelled)
            rows = []
            for _ in range(n):
                rows.append(int(selector.ask()))
                selector.tell(rows[-1], int(labels[rows[-1]]))
            return torch.tensor(rows)

        return call

    time_workload(
        "W8 50 answers before the next question, pool 10,000",
        "384/10",
        units=50,
        checked=5,
        arms={
            "kernel matrix": lambda n: lambda: best_torch.herd(posterior, pool, labelled, n, labels)[0],
            "native": ask,
        },
        targets={},
        work=Work(fmas=10_000 * 10_000 * 384, bytes_read=50 * 4 * 10_000**2),
        rounds={"kernel matrix": 1, "native": 3},
    )
