"""Every README: its blocks run, its other commands exist, and so does everything in this repository that it names.

A fenced block of python or bash runs. The blocks of one README run in order, as one session in one folder, so that no
README depends on another. A command that takes minutes is not fenced but indented by four spaces: it is only checked.
So is a fenced block with a placeholder such as ``<op>``, which the checks replace by the name of an op.

Weights of encoders cannot be downloaded here. ``timm`` and ``sentence_transformers`` are therefore small replacements,
which accept the calls that README makes and return pixels and counts of letters as features. The test answers the
questions that a block asks on the terminal: it knows the digit on every image.
"""

import builtins
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import lapal_ext
import lapal_ext.cli

ROOT = Path(__file__).parents[2]
FOLDERS = ("benchmarks", "csrc", "lapal_ext", "tests")
READMES = [
    "README.md",
    *sorted(str(path.relative_to(ROOT)) for top in FOLDERS for path in (ROOT / top).rglob("README.md")),
]
MOST_LINES = 250  # of README.md
SETUP = ("# the main job", "# the tests")  # first lines of the blocks that .ci/run runs
PROGRAMS = ("lapal-ext", "pytest", "python", "python3", "torchrun")
INDENTED = rf"^ {{4,}}((?:[A-Z_]+=\S+ +)*(?:{'|'.join(PROGRAMS)}) (?:.*\\\n)*.*)$"
PLACEHOLDER = re.compile(r"<\w+>")
AN_OP = "utility"
SOURCE = (".c", ".cmake", ".cpp", ".cu", ".cuh", ".h", ".md", ".py", ".toml", ".yml")
IMAGES = 600


class Block(NamedTuple):
    language: str
    text: str
    line: int  # of its first line in the README


def text_of(readme: str) -> str:
    return (ROOT / readme).read_text(encoding="utf-8")


def divide(readme: str) -> tuple[list[Block], list[str]]:
    """Fenced blocks, also those within lists; and the lines outside of them."""
    blocks, outside = [], []
    language, start, inside = None, 0, []
    for number, line in enumerate(text_of(readme).splitlines(), 1):
        fence = re.match(r" *```(\w*)$", line)
        if fence and language is None:
            language, start, inside = fence[1], number + 1, []
        elif fence:
            blocks.append(Block(language or "", textwrap.dedent("\n".join(inside)) + "\n", start))
            language = None
        elif language is not None:
            inside.append(line)
        else:
            outside.append(line)
    assert language is None, f"{readme}: the block of line {start} has no end"
    return blocks, outside


def in_lines(text: str) -> list[str]:
    """The commands of a text: a line continued by a backslash is one command, and && separates two."""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    return [part.strip() for line in lines if line and not line.startswith("#") for part in line.split("&&")]


def runs(block: Block) -> bool:
    if block.language == "python":
        return True
    return block.language == "bash" and not block.text.startswith(SETUP) and not PLACEHOLDER.search(block.text)


def commands_to_check(readme: str) -> list[str]:
    """The commands that do not run here: indented, or in a block with a placeholder."""
    blocks, outside = divide(readme)
    indented = re.findall(INDENTED, "\n".join(outside), flags=re.MULTILINE)
    placeholders = [b.text for b in blocks if b.language == "bash" and PLACEHOLDER.search(b.text)]
    return [command for text in [*indented, *placeholders] for command in in_lines(text)]


# What blocks use when they run


class Encoder(nn.Module):
    """64 pixels as features. The output of its linear layer must not be taken for features."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(8, 8)

    def forward(self, images: Tensor) -> Tensor:  # [B, 3, 8, 8] -> [B, 64]
        self.inside(images)
        return images[:, 0].flatten(1)


def stand_in_timm() -> ModuleType:
    def create_model(name: str, *, pretrained: bool, num_classes: int) -> nn.Module:
        assert name
        assert pretrained
        assert num_classes == 0
        return Encoder()

    def create_transform(*, input_size: tuple[int, int, int], is_training: bool) -> Any:
        assert not is_training

        def prepare(image: Any) -> Tensor:
            return torch.tensor(np.asarray(image) / 255, dtype=torch.float32).permute(2, 0, 1).reshape(input_size)

        return prepare

    module = ModuleType("timm")

    def resolve_model_data_config(encoder: nn.Module) -> dict[str, Any]:
        assert isinstance(encoder, Encoder)
        return {"input_size": (3, 8, 8)}

    module.create_model = create_model
    module.data = SimpleNamespace(
        create_transform=create_transform, resolve_model_data_config=resolve_model_data_config
    )
    return module


def stand_in_sentence_transformers() -> ModuleType:
    class SentenceTransformer:
        def __init__(self, name: str) -> None:
            assert name

        def encode(self, sentences: list[str]) -> np.ndarray:
            letters = np.array([[text.count(letter) for letter in "aeinorst"] for text in sentences])
            return letters.astype(np.float32)

    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = SentenceTransformer
    return module


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with images and texts, replacements of encoders, and answers to questions."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    (tmp_path / "images").mkdir()
    for number, pixels in enumerate(digits.images[:IMAGES]):
        Image.fromarray((pixels * 15).astype(np.uint8)).save(tmp_path / "images" / f"{number:04}.png")
    (tmp_path / "texts.txt").write_text("a first text\nand another\n")
    monkeypatch.setitem(sys.modules, "timm", stand_in_timm())
    monkeypatch.setitem(sys.modules, "sentence_transformers", stand_in_sentence_transformers())

    def answer(question: str) -> str:
        shown = re.search(r"images/(\d+)\.png", question)
        return str(digits.target[int(shown[1])]) if shown else "3"

    monkeypatch.setattr(builtins, "input", answer)
    with torch.random.fork_rng():  # the blocks draw from the global generator
        torch.manual_seed(0)
        yield tmp_path


def run(command: str) -> None:
    program, *arguments = shlex.split(command, comments=True)
    if program == "lapal-ext":  # in this process: a new one would import torch again
        assert lapal_ext.cli.main(arguments) == 0, command
        return
    assert program in ("python", "torchrun"), f"{command} does not run here: indent it by four spaces, without a fence"
    start = ["-m", "torch.distributed.run"] if program == "torchrun" else []
    package = str(Path(lapal_ext.__file__).parents[1])  # the one that is tested, installed or not
    done = subprocess.run(
        [sys.executable, *start, *arguments],
        env=os.environ | {"PYTHONPATH": package},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)


def run_blocks(readme: str) -> dict[str, Any]:
    """The variables of the session of a README at its end."""
    session: dict[str, Any] = {}
    for language, text, line in filter(runs, divide(readme)[0]):
        if language == "python":
            exec(compile("\n" * (line - 1) + text, str(ROOT / readme), "exec"), session)
        else:
            for command in in_lines(text):
                run(command)
    return session


def rows_of(path: str) -> list[str]:
    """The rows of a label file alone: without kernels, utilities from shards may differ in the last digit."""
    return [line.partition(",")[0] for line in Path(path).read_text().splitlines()]


class TestBlocks:
    """The blocks of each README, and for some READMEs their results."""

    @pytest.mark.parametrize("readme", [name for name in READMES if any(map(runs, divide(name)[0]))])
    def test_every_block_runs(self, readme: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
        session = run_blocks(readme)
        printed = capsys.readouterr().out
        match readme:
            case "README.md":
                self.check_quickstart(session)
            case "lapal_ext/cli/README.md":
                self.check_command_line(printed)
            case "lapal_ext/README.md":
                assert session["found"] > 0.5
            case "lapal_ext/study/README.md":
                assert (workplace / "small" / "report.md").is_file()
                assert (workplace / "flowers" / "results.csv").is_file()

    def check_quickstart(self, session: dict[str, Any]) -> None:
        digits = torch.tensor(load_digits().target[:IMAGES])
        assert session["features"].shape == (IMAGES, 64)
        assert len(session["rows"].unique()) == 70
        assert (session["probabilities"].argmax(dim=1) == digits).double().mean() > 0.9
        assert session["losses"].shape == (3,)
        assert session["scores"].shape == (IMAGES - 70,)
        assert len(session["query"]) == 10
        assert len(rows_of("to_label.csv")) == len(rows_of("answers.csv")) == 11

    def check_command_line(self, printed: str) -> None:
        assert "Answers: 5. Rows chosen: 10." in printed
        assert "Rows of the file that still wait for a label: 5." in printed
        assert len(rows_of("to_label.csv")) == 21
        assert len(rows_of("answers.csv")) == 4
        assert rows_of("shared.csv") == rows_of("alone.csv")
        assert len(rows_of("labels.csv")) == IMAGES + 1
        assert len(rows_of("by_letters.csv")) == 5
        assert "Answers: 40. Rows chosen: 10. tasks.json has the predictions for the project." in printed
        assert len(json.loads(Path("to_import.json").read_text())) == 10


class TestCommands:
    """Commands that take minutes are not run."""

    @pytest.mark.parametrize("readme", READMES)
    def test_every_command_exists(self, readme: str) -> None:
        for command in commands_to_check(readme):
            self.check(command)

    def check(self, command: str) -> None:
        words = shlex.split(PLACEHOLDER.sub(AN_OP, command), comments=True)
        words = words[next(k for k, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)) :]
        words = words[: words.index(">")] if ">" in words else words
        program, *arguments = words
        assert program in PROGRAMS, f"{command}: {program} is none of {PROGRAMS}"
        if program.startswith("python") and arguments[:1] == ["-m"]:
            program, *arguments = arguments[1:]
        elif program == "torchrun" and "lapal_ext" in arguments:
            program, *arguments = arguments[arguments.index("lapal_ext") :]
        if program in ("lapal-ext", "lapal_ext"):
            lapal_ext.cli._parser().parse_args(arguments)
        elif program == "pytest":
            for name in arguments:
                assert "/" not in name or (ROOT / name.partition("::")[0]).exists(), f"{command}: there is no {name}"
        elif program.startswith(("benchmarks", "tests")):
            assert is_module(program), f"{command}: there is no module {program}"

    @pytest.mark.parametrize("readme", READMES)
    def test_shell_understands_every_block(self, readme: str) -> None:
        text = "\n".join(block.text for block in divide(readme)[0] if block.language == "bash")
        done = subprocess.run(
            ["bash", "-n"], input=PLACEHOLDER.sub(AN_OP, text), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def test_setup_blocks_are_where_ci_looks_for_them(self) -> None:
        blocks = [block.text for block in divide("README.md")[0] if block.language == "bash"]
        assert [text.partition("\n")[0] for text in blocks if text.startswith(SETUP)] == list(SETUP)


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def is_part_of_the_package(name: str) -> bool:
    """A module, or something in one: ``lapal_ext.features.extract``."""
    module, attributes = name, []
    while not is_module(module):
        module, _, last = module.rpartition(".")
        attributes.insert(0, last)
        if not module:
            return False
    if not attributes:
        return True
    try:
        found: object = importlib.import_module(module)
    except ImportError:  # an extra that is not installed
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
        return re.search(rf"^(?:def|class) {attributes[0]}\b", source, flags=re.MULTILINE) is not None
    return all((found := getattr(found, attribute, None)) is not None for attribute in attributes)


class TestNames:
    """Names in backticks, and targets of links."""

    @staticmethod
    def names(readme: str) -> list[str]:
        outside = "\n".join(divide(readme)[1])
        return [PLACEHOLDER.sub(AN_OP, name) for name in re.findall(r"`([^`\n]+)`", outside)]

    @pytest.mark.parametrize("readme", READMES)
    def test_every_file_and_folder_exists(self, readme: str) -> None:
        here = (ROOT / readme).parent
        tops = {*FOLDERS, ".github", ".ci"} | {path.name for path in here.iterdir() if path.is_dir()}
        known = {
            path.name for path in [*ROOT.iterdir(), *(path for top in FOLDERS for path in (ROOT / top).rglob("*"))]
        }
        for name in self.names(readme):
            if " " in name or "(" in name or "*" in name:
                continue
            if "/" in name and name.partition("/")[0] in tops:
                assert (ROOT / name).exists() or (here / name).exists(), name
            elif "/" not in name and name.endswith(SOURCE) and not name.startswith("."):
                assert name in known, name

    @pytest.mark.parametrize("readme", READMES)
    def test_every_link_leads_somewhere(self, readme: str) -> None:
        text = text_of(readme)
        headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-").lower() for heading in headings}
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
            if link.startswith("#"):
                assert link[1:] in anchors, link
            else:
                assert ((ROOT / readme).parent / link).exists(), link

    @pytest.mark.parametrize("readme", READMES)
    def test_every_module_and_function_exists(self, readme: str) -> None:
        for name in self.names(readme):
            for dotted in re.findall(r"^(?:python3? -m )?((?:lapal_ext|benchmarks|tests)(?:\.\w+)+)", name):
                assert is_part_of_the_package(dotted), dotted
            owner, _, attribute = name.partition("(")[0].partition(".")
            if attribute and owner in lapal_ext.__all__:
                assert hasattr(getattr(lapal_ext, owner), attribute), name

    def test_the_api_table_has_every_public_name(self) -> None:
        table = text_of("README.md").partition("## The API")[2].partition("\n## ")[0]
        assert set(lapal_ext.__all__) - set(re.findall(r"\w+", table)) <= {"LatentPrediction", "SelectionResult"}


def test_the_front_page_is_short() -> None:
    assert len(text_of("README.md").splitlines()) <= MOST_LINES
