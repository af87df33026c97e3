"""WordNet's definitions, encoded by MiniLM; the classes are lexicographer files ("supersenses").

The text is the part of a synset's gloss before the first quoted example, without the words of the synset. WordNet 3.0
(Princeton's licence, which permits any use) is in the Debian package ``wordnet-base``.
"""

import random
from collections import defaultdict
from collections.abc import Iterable

import torch

from lapal_ext.study.feature_file import Labelled
from lapal_ext.study.recipes.debian import package_files
from lapal_ext.study.recipes.encoders import TEXT_PACKAGES, encode_texts
from lapal_ext.study.recipes.recipe import Made, Recipe

# In the order of lexnames(5WN): a position is the number of a file.
_SUPERSENSES = (
    "adj.all", "adj.pert", "adv.all", "noun.Tops", "noun.act", "noun.animal", "noun.artifact", "noun.attribute",
    "noun.body", "noun.cognition", "noun.communication", "noun.event", "noun.feeling", "noun.food", "noun.group",
    "noun.location", "noun.motive", "noun.object", "noun.person", "noun.phenomenon", "noun.plant",
    "noun.possession", "noun.process", "noun.quantity", "noun.relation", "noun.shape", "noun.state",
    "noun.substance", "noun.time", "verb.body", "verb.change", "verb.cognition", "verb.communication",
    "verb.competition", "verb.consumption", "verb.contact", "verb.creation", "verb.emotion", "verb.motion",
    "verb.perception", "verb.possession", "verb.social", "verb.stative", "verb.weather", "adj.ppl",
)  # fmt: skip
_FILES = ("data.noun", "data.verb", "data.adj", "data.adv")
_FEWEST, _MOST = 200, 250  # definitions of a class: smaller classes are left out, larger ones are sampled
_TEST_SHARE = 0.2
_SEED = 0


def definitions(lines: Iterable[str]) -> list[tuple[str, str]]:
    """Return supersense and definition of each synset.

    Args:
        lines: of WordNet's ``data.*`` files, as in ``offset file-number ... | definition; "example"``. Lines of the
            licence are indented.
    """
    pairs = []
    for line in lines:
        if line.startswith(" "):
            continue
        fields, _, gloss = line.partition(" | ")
        if text := gloss.partition('"')[0].strip(" \n;:,"):
            pairs.append((_SUPERSENSES[int(fields.split()[1])], text))
    return pairs


def chosen(
    pairs: Iterable[tuple[str, str]],
    fewest: int = _FEWEST,
    most: int = _MOST,
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Draw a training and a test part, which have all classes and no definition in common.

    Definitions that occur in two classes are left out.

    Args:
        pairs: supersense and definition.
        fewest: number of definitions below which a class is left out.
        most: number of definitions that are drawn from a larger class.
    """
    classes = defaultdict(set)
    for supersense, text in pairs:
        classes[text].add(supersense)
    texts = defaultdict(list)
    for text, (supersense, *others) in classes.items():
        if not others:
            texts[supersense].append(text)
    draw = random.Random(_SEED)
    train, test = [], []
    for supersense in sorted(texts):
        if len(texts[supersense]) < fewest:
            continue
        drawn = draw.sample(sorted(texts[supersense]), min(most, len(texts[supersense])))
        held_out = round(_TEST_SHARE * len(drawn))
        test += [(supersense, text) for text in drawn[:held_out]]
        train += [(supersense, text) for text in drawn[held_out:]]
    draw.shuffle(train)
    draw.shuffle(test)
    return train, test


def _make(progress: bool) -> Made:
    with package_files("wordnet-base", "usr/share/wordnet", _FILES) as paths:
        pairs = [pair for path in paths for pair in definitions(path.read_text(encoding="utf-8").splitlines())]
    train, test = chosen(pairs)
    names = tuple(sorted({supersense for supersense, _ in train}))
    features = encode_texts([text for _, text in train + test], progress)
    targets = torch.tensor([names.index(supersense) for supersense, _ in train + test], device="cpu")
    count = len(train)
    return Made(Labelled(features[:count], targets[:count]), Labelled(features[count:], targets[count:]), names)


RECIPE = Recipe(
    "10,000 definitions through MiniLM, some minutes; downloads 6 MB unless installed", TEXT_PACKAGES, _make
)
