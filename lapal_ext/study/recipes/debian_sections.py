"""One-line descriptions of Debian's packages, encoded by MiniLM; the classes are sections of the archive.

The descriptions come from the package index of apt, so the set depends on the release and the day. Experiments record
the checksum of their set.
"""

import hashlib
import random
import re
from collections import defaultdict

import torch

from lapal_ext.study.feature_file import Labelled
from lapal_ext.study.recipes.debian import run
from lapal_ext.study.recipes.encoders import TEXT_PACKAGES, encode_texts
from lapal_ext.study.recipes.recipe import Made, Recipe, RecipeError

# Sections for topics of packages. Others, such as libs, python or oldlibs, are for uses of packages.
_SECTIONS = (
    "admin", "database", "devel", "editors", "electronics", "fonts", "games", "graphics", "hamradio", "kernel",
    "localization", "mail", "math", "net", "science", "sound", "text", "video", "web", "x11",
)  # fmt: skip
_NOT_DESCRIBED = re.compile(r"transitional|dummy package|debug symbols", re.IGNORECASE)
_MOST = 600  # descriptions of a section
_TEST_SHARE = 5  # one in this number of source packages
_REMEDY = "run apt-get update and try again"
_SEED = 0


def descriptions(index: str) -> list[tuple[str, str, str]]:
    """Return source package, section and one-line description of the first package of each source and section.

    Args:
        index: the output of ``apt-cache dumpavail``.
    """
    found: dict[tuple[str, str], str] = {}
    for stanza in index.split("\n\n"):
        fields = dict(re.findall(r"^([\w-]+): *(.*)$", stanza, re.MULTILINE))
        section = fields.get("Section", "").rpartition("/")[2]  # Ubuntu's begin with "universe/" and the like
        text = fields.get("Description-en") or fields.get("Description", "")
        if section not in _SECTIONS or not text or _NOT_DESCRIBED.search(text):
            continue
        source = (fields.get("Source") or fields["Package"]).split()[0]
        found.setdefault((source, section), text.strip())
    return [(source, section, text) for (source, section), text in sorted(found.items())]


def in_test_part(source: str) -> bool:
    """Whether the descriptions of a source package belong to the test part."""
    return int(hashlib.sha256(source.encode()).hexdigest(), 16) % _TEST_SHARE == 0


def _make(progress: bool) -> Made:
    rows = descriptions(run(["apt-cache", "dumpavail"], _REMEDY))
    sections = defaultdict(list)
    for row in rows:
        sections[row[1]].append(row)
    if missing := [section for section in _SECTIONS if section not in sections]:
        raise RecipeError(f"apt's index has no packages in {', '.join(missing)}: {_REMEDY}")
    draw = random.Random(_SEED)
    kept = [row for of in sections.values() for row in draw.sample(of, min(_MOST, len(of)))]
    draw.shuffle(kept)
    features = encode_texts([text for _, _, text in kept], progress)
    targets = torch.tensor([_SECTIONS.index(section) for _, section, _ in kept], device="cpu")
    test = torch.tensor([in_test_part(source) for source, _, _ in kept], device="cpu")
    return Made(Labelled(features[~test], targets[~test]), Labelled(features[test], targets[test]), _SECTIONS)


RECIPE = Recipe("7,000 descriptions through MiniLM, some minutes", TEXT_PACKAGES, _make)
