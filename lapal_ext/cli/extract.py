"""``lapal-ext extract``: from a folder or a table of texts or images to the features of a pool."""

import argparse
import csv
import importlib.util
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lapal_ext.cli.arguments import whole_number
from lapal_ext.cli.errors import CommandError, explained
from lapal_ext.cli.items import ID, PATH, TEXT, read_table
from lapal_ext.cli.select.label_file import RESERVED
from lapal_ext.cli.text_files import read_lines

if TYPE_CHECKING:
    from lapal_ext.features.encoders import Encoder

_COMPARED = 32  # items whose inputs for the model tell one encoder from another
_MODEL, _INPUTS, _SIZES = "model", "inputs", "sizes"  # what the file that recognises encoder and items holds

_EXAMPLE = """\
example (the first line makes an encoder and two texts):
  printf 'import torch\\ndef letters():\\n  return torch.nn.Identity(), lambda texts: torch.tensor([[float(t.count(c)) for c in "aeinorst"] for t in texts])\\n' > encoder.py && printf 'id,text\\na,one text\\nb,another\\n' > items.csv
  lapal-ext extract --model encoder:letters --items items.csv --out pool.npy

--model is one of
  timm:NAME        an image model of timm, such as timm:vit_small_patch16_224.dino
  hf:NAME          a model of transformers, or the folder of one; its tokens are averaged
  module:function  a function of yours, without arguments, that returns a torch module and a
                   function; this one makes a batch for the module of a list of texts or paths

The ids and items go to pool.npy.items.csv, which lapal-ext select takes as --items. An interrupted
run goes on where it stopped."""  # noqa: E501 a line that is copied


class _List(NamedTuple):
    """What is to be encoded."""

    ids: list[str]
    values: list[str]  # texts, or paths of images
    columns: Mapping[str, Sequence[str]]  # for people: the texts, or the paths as they are given, and further columns
    kind: str  # as in ``load_encoder``


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the subcommand."""
    parser = subparsers.add_parser(
        "extract",
        help="turn texts or images into features, with an encoder that is on this machine",
        description="Run an encoder over items, and write their features and ids.",
        epilog=_EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="the encoder, see below")
    add(
        "--items",
        required=True,
        type=Path,
        metavar="FOLDER|FILE.csv",
        help="a folder of images or of .txt files, or a table with the columns id, and text or path",
    )
    add("--out", required=True, type=Path, metavar="FILE.npy", help="the features; .npy or .safetensors")
    add("--batch-size", type=whole_number(1), default=64, metavar="N", help="items at a time (default: %(default)s)")
    add("--device", metavar="NAME", help="where the encoder runs, such as cuda (default: cpu)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    with explained(), _current_folder():
        _extract(options)


@contextmanager
def _current_folder() -> Iterator[None]:
    """Import from the current folder too, as an installed command does not; also what an encoder imports later."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def _extract(options: argparse.Namespace) -> None:
    from torch.utils.data import DataLoader

    from lapal_ext.atomic_file import replace_file
    from lapal_ext.features import extract
    from lapal_ext.features.encoders import IMAGES, load_encoder

    if options.out.suffix not in (".npy", ".safetensors") or not options.out.parent.is_dir():
        raise CommandError(f"--out must be a .npy or .safetensors file in an existing folder, got {options.out}")
    items = _folder(options.items) if options.items.is_dir() else _table(options.items)
    record, origin, journal = (
        options.out.with_name(f"{options.out.name}.{suffix}") for suffix in ("items.csv", "encoder.json", "json")
    )
    begun = journal.exists()
    if options.out.exists() and not begun:
        raise CommandError(f"{options.out} exists, and this command has not written it: choose another --out")
    content = _as_table(items)
    otherwise = f"choose another --out, or delete {options.out} and the files whose names begin with it"
    if begun and record.exists() and record.read_bytes() != content:
        raise CommandError(
            f"{options.out} was begun with other items, or in another order, which {record} lists: {otherwise}"
        )
    sizes = [Path(path).stat().st_size for path in items.values] if items.kind == IMAGES else None
    before = _read_origin(origin) if begun else {}
    # Records of older versions have no sizes.
    for name, old, new in zip(items.ids, before.get(_SIZES) or (), sizes or (), strict=False):
        if old != new:
            raise CommandError(
                f"{options.out} was begun with other items: the file of {name!r} had {old} bytes, and has {new}: "
                f"{otherwise}"
            )
    encoder = load_encoder(options.model, items.kind)
    now = {_MODEL: options.model, _INPUTS: _checksum(encoder, items)}
    if begun and any(before.get(key) != value for key, value in now.items()):
        raise CommandError(f"{options.out} was begun with another encoder, or other inputs for it: {otherwise}")
    inputs = (json.dumps(now if sizes is None else {**now, _SIZES: sizes}, indent=1) + "\n").encode()
    replace_file(record, lambda scratch: scratch.write_bytes(content))
    replace_file(origin, lambda scratch: scratch.write_bytes(inputs))
    data: Any = items.values  # a list is a dataset too
    loader: DataLoader[str] = DataLoader(data, options.batch_size, shuffle=False, collate_fn=encoder.prepare)
    features = extract(
        encoder.model,
        loader,
        take=encoder.take,
        pool=encoder.pool,
        path=options.out,
        device=options.device,
        progress=sys.stderr.isatty() and importlib.util.find_spec("rich") is not None,
    ).features
    print(f"Features of {len(features)} {items.kind}, {features.shape[1]} numbers each, are in {options.out}.")
    print(f"To choose what to label: lapal-ext select --pool {options.out} --items {record} --out to_label.csv")


def _folder(folder: Path) -> _List:
    """All files of a folder and the folders in it, in the order of their names; an id is the path within the folder."""
    from lapal_ext.features.encoders import IMAGES, TEXTS

    found = (path for path in folder.rglob("*") if path.is_file())
    paths = sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    if not paths:
        raise CommandError(f"--items must hold files, got the empty folder {folder}")
    ids = [path.relative_to(folder).as_posix() for path in paths]
    texts = [path.suffix == ".txt" for path in paths]
    if all(texts):
        contents = ["\n".join(read_lines("--items", path)) for path in paths]
        return _List(ids, contents, {TEXT: contents}, TEXTS)
    if any(texts):
        other = paths[texts.index(False)]
        raise CommandError(f"--items must hold images alone, or .txt files alone, got {other} beside .txt files")
    names = list(map(str, paths))
    return _List(ids, names, {PATH: names}, IMAGES)


def _table(path: Path) -> _List:
    from lapal_ext.features.encoders import IMAGES, TEXTS

    items = read_table(path, RESERVED)  # which lapal-ext select could not take
    assert items.ids is not None
    if len(items.ids) == 0:
        raise CommandError(f"{path} must have a line for each item below its first one, got none")
    ids = list(items.ids.ids)
    if TEXT in items.columns:
        return _List(ids, list(items.columns[TEXT]), items.columns, TEXTS)
    if PATH not in items.columns:
        raise CommandError(f"{path}, line 1: must have a column called {TEXT} or {PATH}")
    given = list(items.columns[PATH])
    files = [name if Path(name).exists() else str(path.parent / name) for name in given]
    for row, file in enumerate(files):
        if not Path(file).is_file():
            raise CommandError(f"{path}: item {ids[row]!r} must have the path of a file, got {given[row]!r}")
    return _List(ids, files, items.columns, IMAGES)


def _read_origin(path: Path) -> Mapping[str, Any]:
    """What a file says of the encoder and the items of an older run; nothing if it says nothing that is understood."""
    try:
        origin = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(origin, dict) or not isinstance(origin.get(_SIZES, []), list):
        return {}
    return origin


def _checksum(encoder: "Encoder", items: _List) -> str | None:
    """The checksum of what the model of an encoder gets for the first items; None if that has no bits to compare."""
    from lapal_ext.features.data_checksum import sha256

    return sha256(encoder.prepare(items.values[:_COMPARED]))


def _as_table(items: _List) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([ID, *items.columns])
    writer.writerows(zip(items.ids, *items.columns.values(), strict=True))
    return file.getvalue().encode()
