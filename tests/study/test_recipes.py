"""The cache of recipes, and with ``-m slow`` the recipes themselves."""

import hashlib
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from lapal_ext.errors import StorageError
from lapal_ext.study import recipes
from lapal_ext.study.feature_file import Labelled, load_features
from lapal_ext.study.recipes import RECIPES, RecipeError, build, cache
from lapal_ext.study.recipes.recipe import Made, Recipe


def made(factor=1.0):
    features = torch.linspace(-1, 1, 36).view(9, 4) * factor
    targets = torch.arange(9) % 3
    return Made(Labelled(features, targets), Labelled(features[:3], targets[:3]), ("a", "b", "c"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The cache folder, which does not exist yet."""
    monkeypatch.setenv("LAPAL_EXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def calls(monkeypatch):
    """One entry for each time that the recipe "fake" is run: whether a progress bar was asked for."""
    calls = []

    def make(progress):
        calls.append(progress)
        return made()

    monkeypatch.setitem(RECIPES, "fake", Recipe("nothing at all", {}, make))
    return calls


@pytest.mark.usefixtures("folder")
class TestCache:
    def test_a_set_is_made_once_and_kept_with_its_checksum(self, folder, calls):
        said = []
        path = build("fake", said.append, progress=True)
        assert path == folder / "fake.npz"
        assert said == ["Making fake for the first use: nothing at all.", f"Wrote {path}."]
        line = (folder / "fake.npz.sha256").read_text()
        assert line == f"{hashlib.sha256(path.read_bytes()).hexdigest()}  fake.npz\n"
        assert sorted(file.name for file in folder.iterdir()) == ["fake.npz", "fake.npz.sha256"]
        assert build("fake", said.append) == path
        assert len(said) == 2
        assert calls == [True]

    @pytest.mark.usefixtures("calls")
    def test_the_kept_set_is_the_one_that_was_made(self):
        data, expected = load_features(build("fake")), made()
        assert torch.equal(data.train.features, expected.train.features.half().float())
        assert torch.equal(data.train.targets, expected.train.targets)
        assert torch.equal(data.test.features, expected.test.features.half().float())
        assert torch.equal(data.test.targets, expected.test.targets)
        assert data.num_classes == 3

    def test_the_same_set_has_the_same_bytes(self, calls):
        first = build("fake").read_bytes()
        build("fake").unlink()
        assert build("fake").read_bytes() == first
        assert len(calls) == 2

    @pytest.mark.parametrize("where", ["fake.npz", "fake.npz.sha256"])
    @pytest.mark.parametrize(
        "damage", [lambda whole: whole[:-1], lambda whole: b"\xff" + whole[1:], lambda _: b"", None]
    )
    def test_a_set_that_does_not_match_its_checksum_is_made_again_with_a_message(self, where, damage, folder, calls):
        path = build("fake")
        whole = path.read_bytes()
        damaged, said = folder / where, []
        if damage is None:
            damaged.unlink()
        else:
            damaged.write_bytes(damage(damaged.read_bytes()))
        assert build("fake", said.append).read_bytes() == whole
        assert len(calls) == 2
        message = f"{path} does not match its checksum and is made again."
        assert (message in said) == (damage is not None or where == "fake.npz.sha256")
        assert cache.matches(path)

    @pytest.mark.usefixtures("calls")
    @pytest.mark.parametrize("moment", ["save_features", "load_features"])
    def test_an_interrupted_write_leaves_nothing(self, moment, folder, monkeypatch):
        def interrupt(path, *_):
            path.write_bytes(b"half")
            raise KeyboardInterrupt

        monkeypatch.setattr(cache, moment, interrupt)
        with pytest.raises(KeyboardInterrupt):
            build("fake")
        assert list(folder.iterdir()) == []

    def test_an_interruption_between_file_and_checksum_is_noticed(self, calls, monkeypatch):
        path = build("fake")
        with monkeypatch.context() as patch:
            patch.setattr(cache, "_checksum_line", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                cache.keep(path, made(0.5))
        assert not cache.matches(path)
        build("fake")
        assert len(calls) == 2

    def test_features_beyond_float16_are_refused_and_not_kept(self, folder, monkeypatch):
        monkeypatch.setitem(RECIPES, "fake", Recipe("nothing", {}, lambda _: made(1e6)))
        with pytest.raises(StorageError, match="x_train must be finite"):
            build("fake")
        assert list(folder.iterdir()) == []

    def test_a_folder_one_cannot_write_to_is_refused_before_the_work(self, folder, calls):
        folder.write_text("mine")
        with pytest.raises(OSError, match="File exists"):
            build("fake")
        assert not calls

    def test_the_error_for_an_unknown_name_lists_the_known_ones(self):
        with pytest.raises(ValueError, match="one of debian_sections, fashion_mnist, wordnet_supersenses, got 'mnist'"):
            build("mnist")

    @pytest.mark.parametrize("name", [*RECIPES])
    def test_missing_packages_are_named_with_the_extra_that_brings_them(self, name, folder, monkeypatch):
        for module in RECIPES[name].packages:
            monkeypatch.setitem(sys.modules, module, None)
        packages = " and ".join(RECIPES[name].packages.values())
        with pytest.raises(RecipeError, match=rf'^{name} needs {packages}: pip install "lapal_ext\[recipes\]"$'):
            build(name)
        assert not folder.exists()

    def test_the_folder_is_in_the_home_by_default(self, tmp_path, monkeypatch):
        monkeypatch.delenv("LAPAL_EXT_CACHE", raising=False)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert recipes.folder() == tmp_path / ".cache" / "lapal_ext"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "floor"), [("debian_sections", 0.5), ("fashion_mnist", 0.7), ("wordnet_supersenses", 0.4)]
)
def test_a_recipe_really_makes_its_set(name, floor, folder):
    """In a separate process, so that warnings from its imports are no errors."""
    if any(find_spec(module) is None for module in RECIPES[name].packages):
        pytest.skip("the extra recipes is not installed")
    code = f"from lapal_ext.study.recipes import build; build({name!r})"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ, capture_output=True, text=True, check=False)
    if "RecipeError" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    data = load_features(folder / f"{name}.npz")
    assert data.train.features.shape[1] == 384
    means = torch.stack([data.train.features[data.train.targets == k].mean(0) for k in range(data.num_classes)])
    nearest = torch.cdist(data.test.features, means).argmin(1)
    assert (nearest == data.test.targets).float().mean() > floor
