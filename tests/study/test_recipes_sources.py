"""How recipes call Debian's tools, and how each of them reads its source; no encoder runs, nothing is downloaded."""

from collections import Counter

import pytest

from lapal_ext.study.recipes import RECIPES, RecipeError, debian
from lapal_ext.study.recipes.debian_sections import descriptions, in_test_part
from lapal_ext.study.recipes.fashion_mnist import read_idx
from lapal_ext.study.recipes.wordnet_supersenses import chosen, definitions


class TestDebian:
    @pytest.fixture
    def machine(self, tmp_path, monkeypatch):
        """An empty root folder, and an empty folder for tools as the whole $PATH."""
        monkeypatch.setattr(debian, "_ROOT", tmp_path / "root")
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        (tmp_path / "bin").mkdir()
        return tmp_path

    def tool(self, machine, name, script):
        file = machine / "bin" / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def test_installed_files_are_used_where_they_are(self, machine):
        place = machine / "root" / "usr" / "share" / "set"
        place.mkdir(parents=True)
        (place / "a").write_text("1")
        with debian.package_files("set", "usr/share/set", ["a"]) as paths:
            assert paths == [place / "a"]
        assert (place / "a").exists()

    def test_a_package_is_unpacked_and_removed(self, machine):
        self.tool(machine, "apt-get", '[ "$1" = download ] && echo "$LC_ALL" > "$2_1.deb"')
        self.tool(machine, "dpkg-deb", '[ "$1" = -x ] && /bin/mkdir -p "$3/usr/share" && /bin/cp "$2" "$3/usr/share/a"')
        with debian.package_files("set", "usr/share", ["a"]) as (path,):
            assert path.read_text() == "C.UTF-8\n"
        assert not path.exists()
        with (
            pytest.raises(RecipeError, match="package set has no b, c in /usr/share"),
            debian.package_files("set", "usr/share", ["b", "a", "c"]),
        ):
            pass

    @pytest.mark.usefixtures("machine")
    def test_a_machine_without_apt_is_told_what_to_do(self):
        message = r"this machine has no apt-get: make the set on .* Debian .* \$LAPAL_EXT_DATA"
        with pytest.raises(RecipeError, match=message), debian.package_files("set", "usr", ["a"]):
            pass

    def test_a_failing_tool_is_quoted_with_the_remedy(self, machine):
        self.tool(machine, "apt-get", "echo W: slow >&2; echo E: Unable to locate package set >&2; exit 100")
        message = r"apt-get download set failed \(E: Unable to locate .*\): run apt-get update .* apt-get install set"
        with pytest.raises(RecipeError, match=message), debian.package_files("set", "usr", ["a"]):
            pass
        self.tool(machine, "apt-cache", "exit 3")
        with pytest.raises(RecipeError, match=r"apt-cache dumpavail failed \(exit status 3\): update"):
            debian.run(["apt-cache", "dumpavail"], "update")

    def test_an_index_without_packages_is_explained(self, machine):
        self.tool(machine, "apt-cache", "echo")
        with pytest.raises(RecipeError, match=r"no packages in admin, database, .*: run apt-get update"):
            RECIPES["debian_sections"].make(lambda *_: None)


WORDNET = """\
  1 This software and database is being provided to you, the LICENSEE, by | Princeton
00001740 03 n 01 entity 0 003 ~ 00001930 n 0000 ~ 00002137 n 0000 | that which is perceived or known
00006269 05 n 02 life 0 living_things 0 000 | living things collectively; "the oceans are teeming with life"
02772310 43 v 01 rain 0 000 01 + 01 00 | precipitate as rain; fall; "If it rains much more" - Noah; "more"
00014490 00 a 01 long 0 000 | having more than normal or necessary:"long on brains"
00014491 44 s 01 quoted 0 000 | "nothing else"
"""


class TestWordnet:
    def test_definitions_are_read_without_examples_and_words(self):
        lines = [f"{line}  \n" for line in WORDNET.splitlines()]  # as lines end in the files
        assert definitions(lines) == [
            ("noun.Tops", "that which is perceived or known"),
            ("noun.animal", "living things collectively"),
            ("verb.weather", "precipitate as rain; fall"),
            ("adj.all", "having more than normal or necessary"),
        ]

    def test_classes_are_bounded_and_in_both_parts(self):
        pairs = [(name, f"{name} {k}") for name, count in (("few", 9), ("ten", 10), ("many", 90)) for k in range(count)]
        train, test = chosen(pairs, fewest=10, most=20)
        assert Counter(name for name, _ in train) == {"ten": 8, "many": 16}
        assert Counter(name for name, _ in test) == {"ten": 2, "many": 4}
        assert len(set(train + test)) == 30
        for part in (train, test):
            names = [name for name, _ in part]
            assert names != sorted(names)
        assert chosen(reversed(pairs), fewest=10, most=20) == (train, test)

    def test_a_definition_is_in_one_part_and_never_in_two_classes(self):
        pairs = [("a", str(k)) for k in range(20)] * 2 + [("b", str(k)) for k in range(15, 35)]
        train, test = chosen(pairs, fewest=2, most=99)
        assert sorted(text for _, text in train + test) == sorted(str(k) for k in range(35) if not 15 <= k < 20)


def test_idx_arrays_are_read_in_their_shape():
    header = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3])
    assert read_idx(header + bytes(range(250, 256))).tolist() == [[250, 251, 252], [253, 254, 255]]
    assert read_idx(bytes([0, 0, 8, 1, 0, 0, 1, 0]) + bytes(256)).shape == (256,)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(4),
        bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(5),
        bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3]) + bytes(7),
        bytes([0, 0, 8, 2, 0, 0, 0, 2]),
        bytes([0, 0, 13, 1, 0, 0, 0, 2]) + bytes(2),
        bytes([1, 0, 8, 1, 0, 0, 0, 2]) + bytes(2),
    ],
)
def test_what_is_no_idx_array_is_refused(data):
    with pytest.raises(RecipeError, match="Fashion-MNIST is damaged"):
        read_idx(data)


STANZAS = """\
Package: beta-data
Source: beta (1.2)
Description: Game about boats
 with a second line
Section: games

Package: beta
Description: The same game
Description-en: A game that stands after its data
Section: games

Package: alpha
Tag: role::program,
 uitoolkit::sdl
Section: universe/math
Description: old text
Description-en: Solver for equations

Package: gone
Section: math
Description: transitional package for alpha

Package: libalpha
Source: alpha
Section: libs
Description: library

Package: silent
Section: math
"""


class TestSections:
    def test_one_line_of_each_source_and_section(self):
        assert descriptions(STANZAS) == [
            ("alpha", "math", "Solver for equations"),
            ("beta", "games", "Game about boats"),
        ]

    def test_a_fifth_of_the_sources_is_for_testing(self):
        sources = [f"source{k}" for k in range(1000)]
        assert 150 < sum(map(in_test_part, sources)) < 250
        assert [in_test_part(name) for name in ("hello", "bash", "vim", "git")] == [True, False, False, True]
