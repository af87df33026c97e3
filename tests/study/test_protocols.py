import numpy as np
import pytest
import torch

from lapal_ext.posterior.last_layer_laplace import LastLayerLaplace
from lapal_ext.study import metrics, protocols, strategies
from lapal_ext.study.configuration import Configuration, Source, default_batch, environment
from lapal_ext.study.data import load_digits, split
from lapal_ext.study.experiment import one_thread
from lapal_ext.study.feature_file import Labelled
from lapal_ext.study.strategies import ACTIVE_STRATEGIES, BATCH_STRATEGIES, LOOK_AHEAD_STRATEGIES, UPDATING_STRATEGIES


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
        outcomes = [
            metrics.Outcome("margin", 10 + i, p.double().log(), None, 0.5 * i) for i, p in enumerate((half, right))
        ]
        first, second = metrics.measure(outcomes, y, "active_learning", 0, 1.0, calibration=False)
        assert (first.accuracy, first.aulc, second.accuracy, second.aulc) == (0.5, 0.5, 1.0, 0.75)
        assert second.nll == pytest.approx(-(np.log(0.9) + np.log(0.8)) / 2)
        assert second.ece is None
        assert (second.choice_seconds, second.learning_seconds) == (None, 0.5)
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

    def test_strategies_that_fill_a_batch_at_once_absorb_nothing_and_get_what_is_labelled(self, monkeypatch):
        parts, calls = split(load_digits(), 0), {}
        select = strategies.select_batch

        def spy(model, pool, size, acquisition, targets, **options):
            calls[acquisition] = (targets, options.get("labelled"), options.get("update_every"))
            return select(model, pool, size, acquisition, targets, **options)

        monkeypatch.setattr(strategies, "select_batch", spy)
        known = parts.pool.features[:20]
        model = LastLayerLaplace.fit_map(known, parts.pool.targets[:20], 10)
        free = Labelled(parts.pool.features[20:120], parts.pool.targets[20:120])
        draw = torch.Generator().manual_seed(0)
        for name in ("uherding", "maxherding", "margin"):
            strategies.choose_batch(name, model, known, free, parts.evaluation, 5, draw)
            assert calls[name][0] is None
            assert torch.equal(calls[name][1], known)
        strategies.choose_batch("uherding_true", model, known, free, parts.evaluation, 5, draw)
        assert torch.equal(calls["uherding"][0], free.targets)
        assert torch.equal(calls["uherding"][1], known)
        assert {every for *_, every in calls.values()} == {None}

    @pytest.mark.parametrize(
        ("name", "every", "learned"),
        [
            ("margin", 1, ["refit"] * 5),
            ("margin", 2, ["update", "refit", "update", "refit", "update"]),
            ("margin", 0, ["update"] * 5),
            ("margin_updated", 1, ["update"] * 5),
            ("margin_updated", 2, ["update"] * 5),
        ],
    )
    def test_a_model_is_refitted_after_every_kth_batch_and_else_updated(self, name, every, learned, monkeypatch):
        parts, done = split(load_digits(), 0), []
        fit, update = protocols._fit, LastLayerLaplace.update
        refit = protocols._refit
        monkeypatch.setattr(protocols, "_fit", lambda *args: done.append("fit") or fit(*args))
        monkeypatch.setattr(protocols, "_refit", lambda *args: done.append("refit") or refit(*args))
        monkeypatch.setattr(LastLayerLaplace, "update", lambda *args: done.append("update") or update(*args))
        outcomes = list(protocols.active_learning(parts, 0, 10, 5, 5, name, subset=100, refit_every=every))
        assert done == ["fit", *learned]
        assert [outcome.strategy for outcome in outcomes] == [name] * 6
        assert outcomes[0][-2:] == (None, None)
        assert all(seconds > 0.0 for outcome in outcomes[1:] for seconds in outcome[-2:])

    def test_updates_absorb_each_batch_once_into_the_first_fit(self, monkeypatch):
        parts, batches = split(load_digits(), 0), []
        choose = strategies.choose_batch

        def spy(strategy, model, labelled, *rest):
            batches.append(labelled)
            return choose(strategy, model, labelled, *rest)

        monkeypatch.setattr(strategies, "choose_batch", spy)
        *_, last = protocols.active_learning(parts, 0, 10, 5, 2, "uherding_updated", subset=100)
        *_, refitted = protocols.active_learning(parts, 0, 10, 5, 2, "uherding", subset=100)
        labels = {tuple(x.tolist()): int(y) for x, y in zip(*parts.pool, strict=True)}
        known = batches[1]
        assert [len(rows) for rows in batches] == [10, 15, 10, 15]
        targets = torch.tensor([labels[tuple(x.tolist())] for x in known])
        model = LastLayerLaplace.fit_map(known[:10], targets[:10], 10)
        model.update(known[10:], targets[10:])
        assert torch.equal(batches[2], known[:10])
        assert torch.equal(batches[3], known), "the first batch is chosen by the same model"
        assert not torch.equal(last.log_probabilities, refitted.log_probabilities)
        free = protocols.candidates(900, self.rows(parts, known), 100, 0, 1)
        pool = Labelled(parts.pool.features[free], parts.pool.targets[free])
        draw = torch.Generator().manual_seed(0)
        chosen = choose("uherding", model, known, pool, parts.evaluation, 5, draw)
        model.update(pool.features[chosen], pool.targets[chosen])
        expected = model.predict_logits(parts.test.features).double().log_softmax(1)
        assert torch.equal(last.log_probabilities, expected)

    @staticmethod
    def rows(parts, features):
        """Row numbers of features in the pool."""
        return torch.tensor([int((parts.pool.features == x).all(1).nonzero()[0]) for x in features])

    def test_descriptions_say_which_strategies_use_true_labels(self):
        for name in (*BATCH_STRATEGIES, *LOOK_AHEAD_STRATEGIES):
            for arm in (name, f"{name}_updated"):
                text = strategies.describe(arm)
                assert ("label before next pick" in text or "unknown in practice" in text) == name.endswith("_true")
                assert strategies.uses_unknown_labels(arm) == name.endswith("_true")
        every = (*BATCH_STRATEGIES, *(f"{name}_updated" for name in BATCH_STRATEGIES), *UPDATING_STRATEGIES)
        assert len({strategies.describe(name) for name in every}) == len(every)
        assert strategies.describe("uherding_updated") == "uherding, closed-form updates, never refitted"

    def test_default_arms_have_the_herding_strategies_and_one_that_is_never_refitted(self):
        assert {"uherding", "maxherding", "uherding_true", "uherding_updated"} <= set(ACTIVE_STRATEGIES)
        assert [name for name in ACTIVE_STRATEGIES if name.endswith("_updated")] == ["uherding_updated"]

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
    def test_a_title_is_in_words(self):
        ahead = Configuration("look_ahead", "digits", None, ("margin",), 1, (1.0,), 10, 300)
        assert ahead.title == "Look-ahead on digits"

    def test_default_batches_are_those_of_the_paper_for_its_data_sets(self):
        assert default_batch("banking77_minilm.npz", 77) == 200
        assert default_batch("clinc150_minilm.npz", 150) == 150
        assert [default_batch("mine.npz", count) for count in (2, 20, 500)] == [10, 20, 50]

    def test_the_environment_names_versions_and_kernels(self):
        found = environment()
        assert found["torch"] == torch.__version__
        assert found["kernels"]
        assert set(found) >= {"lapal_ext", "commit", "numpy", "scikit-learn", "torchmetrics", "processor"}
