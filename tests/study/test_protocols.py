import numpy as np
import pytest
import torch

from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.study import metrics, protocols, strategies
from lapal_ext.study.configuration import Source, default_batch, environment
from lapal_ext.study.data import load_digits, split
from lapal_ext.study.experiment import one_thread
from lapal_ext.study.feature_file import Labelled
from lapal_ext.study.strategies import BATCH_STRATEGIES, LOOK_AHEAD_STRATEGIES, UPDATING_STRATEGIES


@pytest.fixture(autouse=True)
def single_thread():
    with one_thread():
        yield


class TestMetrics:
    def test_against_their_definitions(self):
        draw = torch.Generator().manual_seed(0)
        p = torch.rand(500, 4, generator=draw, dtype=torch.float64).pow(3) + 1e-3
        p = p / p.sum(1, keepdim=True)
        y = torch.randint(4, (500,), generator=draw)
        squares = [sum((float(p[i, k]) - float(k == y[i])) ** 2 for k in range(4)) for i in range(500)]
        assert metrics.brier(p, y) == pytest.approx(sum(squares) / 500)
        best, right = p.max(1).values, p.argmax(1) == y
        gaps = 0.0
        for low in range(15):
            members = (best > low / 15) & (best <= (low + 1) / 15)
            if bool(members.any()):
                gaps += float(members.sum()) / 500 * abs(float(best[members].mean() - right[members].double().mean()))
        assert metrics.calibration_error(p, y) == pytest.approx(gaps, abs=1e-6)

    def test_a_record_of_a_curve_carries_its_area_so_far(self):
        y = torch.tensor([0, 1])
        right, half = torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([[0.9, 0.1], [0.6, 0.4]])
        outcomes = [metrics.Outcome("margin", 10 + i, p.double().log(), None) for i, p in enumerate((half, right))]
        first, second = metrics.measure(outcomes, y, "active_learning", 0, 1.0, calibration=False)
        assert (first.accuracy, first.aulc, second.accuracy, second.aulc) == (0.5, 0.5, 1.0, 0.75)
        assert second.nll == pytest.approx(-(np.log(0.9) + np.log(0.8)) / 2)
        assert second.ece is None
        assert next(metrics.measure(outcomes, y, "updating", 0, 1.0, calibration=False)).aulc is None


class TestProtocols:
    def test_candidates_are_free_rows_of_one_draw_per_query(self):
        first, other = torch.tensor([0, 5, 7]), torch.tensor([1, 5, 9])
        mine, yours = (protocols.candidates(300, labelled, 100, 3, 2) for labelled in (first, other))
        assert len(mine) == len(yours) == 100
        assert not set(mine.tolist()) & set(first.tolist())
        assert mine.tolist() == sorted(set(mine.tolist()))
        # A row that only one of the two has labelled is replaced by the next in the same order: at most two differ.
        assert len(set(mine.tolist()) & set(yours.tolist())) >= 98
        assert not torch.equal(mine, protocols.candidates(300, first, 100, 3, 1))
        assert not torch.equal(mine, protocols.candidates(300, first, 100, 4, 2))
        assert len(protocols.candidates(300, first, None, 3, 2)) == 297

    def test_all_strategies_of_a_query_see_the_same_candidates(self, monkeypatch):
        parts, seen = split(load_digits(), 0), []
        choose = strategies.choose_batch

        def spy(name, model, labelled, unlabelled, *rest):
            seen.append(unlabelled.features)
            return choose(name, model, labelled, unlabelled, *rest)

        monkeypatch.setattr(strategies, "choose_batch", spy)
        for name in ("margin", "margin_predicted", "look_ahead_true"):
            list(protocols.active_learning(parts, 0, 10, 5, 1, name, subset=100))
        assert len(seen) == 3
        assert all(torch.equal(features, seen[0]) for features in seen)
        assert len(seen[0]) == 100

    @pytest.mark.parametrize("name", BATCH_STRATEGIES)
    def test_every_strategy_picks_distinct_rows_and_only_those_named_true_see_labels(self, name):
        parts = split(load_digits(), 0)
        model = LastLayerLaplace.fit_map(parts.pool.features[:20], parts.pool.targets[:20], 10)

        def choose(shift):
            free = Labelled(parts.pool.features[20:220], (parts.pool.targets[20:220] + shift) % 10)
            evaluation = Labelled(parts.evaluation.features, (parts.evaluation.targets + shift) % 10)
            draw = torch.Generator().manual_seed(0)
            return strategies.choose_batch(name, model, parts.pool.features[:20], free, evaluation, 8, draw).tolist()

        picks = choose(0)
        assert len(set(picks)) == 8
        assert set(picks) <= set(range(200))
        assert (picks == choose(1)) == (not name.endswith("_true"))

    def test_descriptions_say_which_strategies_use_true_labels(self):
        for name in (*BATCH_STRATEGIES, *LOOK_AHEAD_STRATEGIES):
            text = strategies.describe(name)
            assert ("label before next pick" in text or "upper bound" in text) == name.endswith("_true")
        every = (*BATCH_STRATEGIES, *UPDATING_STRATEGIES)
        assert len({strategies.describe(name) for name in every}) == len(every)

    def test_updating_runs_every_arm_from_one_mean(self):
        parts = split(load_digits(), 0)
        outcomes = {o.strategy: o for o in protocols.updating(parts, 0, 30, (20,), UPDATING_STRATEGIES)}
        assert tuple(outcomes) == UPDATING_STRATEGIES
        order = torch.randperm(900, generator=torch.Generator().manual_seed(0))
        old, new = order[:30], order[30:50]
        pool = parts.pool
        for curvature, step, gamma, name in (
            ("categorical", "line_search", 1.0, "line_search"),
            ("categorical", "newton", 1.0, "newton"),
            ("gaussian", "newton", 3.0, "official_3"),
        ):
            model = LastLayerLaplace.fit_map(pool.features[old], pool.targets[old], 10, curvature=curvature)
            model.update(pool.features[new], pool.targets[new], step, gamma)
            expected = model.predict_logits(parts.test.features).double().log_softmax(1)
            assert torch.equal(outcomes[name].log_probabilities, expected)
        sums = outcomes["monte_carlo_0.05"].log_probabilities.exp().sum(1)
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-5)
        assert outcomes["base"].labels == 30
        assert outcomes["refit"].labels == 50

    @pytest.mark.parametrize("factor", [1e-3, 1e3])
    def test_the_scale_of_features_does_not_matter(self, factor):
        nll = []
        for scale in (1.0, factor):
            parts = Source(None).split(0, 300, scale)
            end = list(protocols.updating(parts, 0, 30, (20,), ("line_search",)))[-1]
            nll.append(float(torch.nn.functional.nll_loss(end.log_probabilities, parts.test.targets)))
        assert nll[0] == pytest.approx(nll[1], rel=1e-4)


class TestConfiguration:
    def test_default_batches_are_those_of_the_paper_for_its_data_sets(self):
        assert default_batch("banking77_minilm.npz", 77) == 200
        assert default_batch("clinc150_minilm.npz", 150) == 150
        assert [default_batch("mine.npz", count) for count in (2, 20, 500)] == [10, 20, 50]

    def test_the_environment_names_versions_and_kernels(self):
        found = environment()
        assert found["torch"] == torch.__version__
        assert found["kernels"]
        assert set(found) >= {"lapal_ext", "commit", "numpy", "scikit-learn", "torchmetrics", "processor"}
