"""What holds for every acquisition: sources of labels, candidates, undo, and the same picks from every interface."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lapal_ext
from lapal_ext import SequentialSelector, select_batch
from lapal_ext.acquisition.registry import ACQUISITIONS, draws, uses_variance
from lapal_ext.rules import EXACT_LINKS, LINKS
from tests.fuzz.processes import HANGS
from tests.problems import Problem, make_problem

B = 6
CASES = [(name, link) for name in ACQUISITIONS for link in EXACT_LINKS] + [("bald", "mc")]
every = pytest.mark.parametrize(("name", "link"), CASES, ids=lambda value: value)


@pytest.fixture
def problem() -> Problem:
    return make_problem()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every
@pytest.mark.parametrize("update_every", [1, 4, B])
@pytest.mark.parametrize("source", ["predicted", "sampled", "true", "asked", "none"])
def test_every_source_of_labels(problem: Problem, name: str, link: str, source: str, update_every: int) -> None:
    """Each gives the same batch twice and leaves the model unchanged; acquisitions that need labels raise without."""
    asked: list[int] = []

    def annotate(row: int) -> int:
        asked.append(row)
        return int(problem.labels[row])

    targets = {"true": problem.labels, "asked": annotate, "none": None}.get(source, source)
    arguments = problem.posterior, problem.pool, B, name, targets
    if source == "none" and update_every < B and not uses_variance(name, LINKS[link]):
        with pytest.raises(ValueError, match="targets=None absorbs no labels"):
            select_batch(*arguments, update_every=update_every, link=link)
        return
    before = [buffer.clone() for buffer in problem.posterior.buffers()]
    result = select_batch(*arguments, update_every=update_every, link=link, generator=generator())
    picks = result.indices.tolist()
    assert len(set(picks)) == B
    assert bool(result.utilities.isfinite().all())
    assert result.utilities.dtype == torch.float64
    if source == "asked":
        assert asked == picks
    if source in ("true", "asked"):
        expected = problem.posterior.condition_on(problem.pool[picks], problem.labels[picks])
        torch.testing.assert_close(result.posterior.mean, expected.mean)
    again = select_batch(*arguments, update_every=update_every, link=link, generator=generator())
    assert torch.equal(again.indices, result.indices)
    assert torch.equal(again.utilities, result.utilities)
    assert all(torch.equal(a, b) for a, b in zip(before, problem.posterior.buffers(), strict=True))


@every
def test_ask_and_tell_give_the_batch_of_select_batch(problem: Problem, name: str, link: str) -> None:
    batch = select_batch(problem.posterior, problem.pool, B, name, problem.labels, link=link, generator=generator())
    selector = SequentialSelector(problem.posterior, problem.pool, name, link=link, generator=generator())
    for row in batch.indices:
        assert int(selector.ask()) == int(row)
        assert torch.equal(selector.ask(n=3)[:1], selector.ask()) or name in ("typiclust", "bait_forward_backward")
        selector.tell(row, problem.labels[row])


@every
def test_questions_are_the_same_after_undo_and_after_loading_a_state(problem: Problem, name: str, link: str) -> None:
    def start(seed: int) -> SequentialSelector:
        return SequentialSelector(
            problem.posterior, problem.pool, name, link=link, generator=generator(seed), labelled=problem.eval_features
        )

    selector = start(0)
    questions = []
    for number in range(5):
        questions.append(selector.ask(n=2))
        if number == 2:
            selector.skip(questions[-1])
        elif number == 3:  # one of the two, and one that was not asked for
            other = next(row for row in range(60) if row not in torch.cat(questions).tolist())
            pair = torch.tensor([int(questions[-1][0]), other])
            selector.tell(pair, problem.labels[pair])
        else:
            selector.tell(questions[-1], problem.labels[questions[-1]])
    due = selector.ask(n=3)
    resumed = start(99)
    resumed.load_state_dict(selector.state_dict())
    assert torch.equal(resumed.ask(n=3), due)
    for number in reversed(range(5)):
        for one in (selector, resumed):
            one.undo()
            assert torch.equal(one.ask(n=2), questions[number])


@every
def test_skipped_rows_are_never_asked_for(problem: Problem, name: str, link: str) -> None:
    selector = SequentialSelector(problem.posterior, problem.pool, name, link=link, generator=generator())
    selector.skip(torch.arange(50))
    assert sorted(selector.ask(n=10).tolist()) == list(range(50, 60))
    selector.tell(55, 0)
    assert sorted(selector.ask(n=9).tolist()) == [*range(50, 55), *range(56, 60)]


@every
def test_rows_outside_the_candidates_have_no_influence(problem: Problem, name: str, link: str) -> None:
    candidates = torch.tensor([41, 3, 50, 22, 7, 19, 0, 33, 58, 11, 12, 13, 14, 30, 31])
    ordered = candidates.sort().values
    for update_every in (1, B):
        arguments = {"acquisition": name, "link": link, "update_every": update_every}
        result = select_batch(
            problem.posterior,
            problem.pool,
            B,
            targets=problem.labels,
            candidates=candidates,
            generator=generator(),
            **arguments,
        )
        alone = select_batch(
            problem.posterior,
            problem.pool[ordered],
            B,
            targets=problem.labels[ordered],
            generator=generator(),
            **arguments,
        )
        assert torch.equal(result.indices, ordered[alone.indices])


@every
def test_only_random_acquisitions_advance_the_generator(problem: Problem, name: str, link: str) -> None:
    used = generator()
    select_batch(problem.posterior, problem.pool, B, name, link=link, generator=used)
    assert torch.equal(used.get_state(), generator().get_state()) != draws(name, LINKS[link], len(problem.pool))
    if name in ("random", "badge"):
        batches = {tuple(select_batch(problem.posterior, problem.pool, B, name, generator=used).indices.tolist())}
        assert len(batches) == 1
        batches |= {
            tuple(select_batch(problem.posterior, problem.pool, B, name, generator=used).indices.tolist())
            for _ in range(5)
        }
        assert len(batches) > 3


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@every
def test_half_precision_pools_pick_like_their_float32_copies(name: str, link: str, half: torch.dtype) -> None:
    problem = make_problem(dtype=torch.float32, n_pool=100)
    stored = problem.pool.to(half)
    kept, widened = (
        select_batch(problem.posterior, pool, B, name, link=link, generator=generator())
        for pool in (stored, stored.float())
    )
    assert kept.indices.tolist() == widened.indices.tolist()


@every
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_standardising_by_hand_gives_the_same_picks(name: str, link: str, bias: bool, standardize: bool) -> None:
    exact = make_problem()
    x, y = exact.eval_features, exact.eval_targets
    inside = lapal_ext.LastLayerLaplace.fit_map(x, y, 4, fit_bias=bias, standardize=standardize)
    by_hand = lapal_ext.LastLayerLaplace.fit_map(
        (x - inside.centre) * inside.scale, y, 4, fit_bias=bias, standardize=False
    )
    pools = exact.pool, (exact.pool - inside.centre) * inside.scale
    results = [
        select_batch(model, pool, B, name, exact.labels, link=link, generator=generator())
        for model, pool in zip((inside, by_hand), pools, strict=True)
    ]
    assert torch.equal(results[0].indices, results[1].indices)


@every
def test_the_whole_pool_can_be_picked(problem: Problem, name: str, link: str) -> None:
    """With duplicates, and for every ``update_every``."""
    pool = torch.cat([problem.pool[:20], problem.pool[:10]])
    for update_every in (1, 7, 30):
        result = select_batch(
            problem.posterior, pool, 30, name, update_every=update_every, link=link, generator=generator()
        )
        assert sorted(result.indices.tolist()) == list(range(30))


SCRIPT = """
import torch
from lapal_ext import build_info, select_batch
from lapal_ext.acquisition.registry import ACQUISITIONS
from tests.problems import make_problem
p = make_problem(n_classes=7, n_pool=300, dtype=torch.float32)
for kind in ACQUISITIONS:
    for link in ("plugin", "mean_field", *(["mc"] if kind == "bald" else [])):
        for update_every in (1, 15):
            generator = torch.Generator().manual_seed(0)
            batch = select_batch(
                p.posterior, p.pool, 15, kind, link=link, update_every=update_every, generator=generator
            )
            print(kind, link, *batch.indices.tolist())
print("native" if build_info()["native"] else "reference")
"""


def test_the_same_picks_without_native_code() -> None:
    """In two new processes; without compiled kernels both run the references."""

    def run(**environment: str) -> list[str]:
        command = [sys.executable, "-c", SCRIPT]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, check=True)
        return done.stdout.splitlines()

    reference = run(LAPAL_EXT_BACKEND="reference")
    assert reference[-1] == "reference"
    assert run()[:-1] == reference[:-1]


@pytest.fixture
def without_scikit_learn() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in ("sklearn", "sklearn.cluster", "sklearn.exceptions"):
            patch.setitem(sys.modules, module, None)
        yield


@pytest.mark.usefixtures("without_scikit_learn")
def test_acquisitions_that_need_scikit_learn_say_so(problem: Problem) -> None:
    for name in ACQUISITIONS:
        if name in ("typiclust", "probcover"):
            with pytest.raises(ImportError, match=rf"^acquisition '{name}' needs scikit-learn: pip install "):
                select_batch(problem.posterior, problem.pool, B, name)
        else:
            select_batch(problem.posterior, problem.pool, B, name)


def test_every_name_is_in_the_docstring_and_has_a_test() -> None:
    documented = select_batch.__doc__ or ""
    assert [name for name in ACQUISITIONS if f"``{name}``" not in documented] == []
    shared = {"registry", "spec", "scorer", "latent_scorer", "posterior_scorer", "distances", "clustering"}
    shared |= {"references", "kernel_rows", "lazy_gains", "ball_graph"}
    modules = {path.stem for path in Path(lapal_ext.acquisition.registry.__file__).parent.glob("[a-z]*.py")} - shared
    tested = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert modules - tested == {"uncertainty", "custom", "random"}  # in tests/selection/test_select_batch.py


MEMORY = """
import resource, torch
from lapal_ext import LastLayerLaplace, select_batch
from lapal_ext.acquisition.registry import ACQUISITIONS
from tests.fuzz.processes import HANGS
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
x, y = torch.randn(200, 16, generator=generator), torch.arange(200) % 20
model = LastLayerLaplace.fit_map(x, y, 20)
pool = torch.randn(12_000, 16, generator=generator)
peaks = []
for rows in (pool[:500], pool):
    for name in ACQUISITIONS:
        link = "mc" if name == "bald" else "plugin"
        select_batch(model, rows, 4, name, update_every=2, link=link, labelled=x)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print((peaks[1] - peaks[0]) / 1024)
"""


def test_memory_is_bounded() -> None:
    """[N, N] in float32 would take 576 MB here, [N, S, C] 490 MB; the largest tiles are 16 MB."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, env=os.environ, timeout=HANGS
    )
    assert float(done.stdout) < 200
