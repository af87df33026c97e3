"""Running a model over data for the input or output of one of its layers."""

import inspect
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lapal_ext.entries import outside_inference_mode, warn
from lapal_ext.errors import StorageError
from lapal_ext.features.batches import Batch, Ids, read_batches
from lapal_ext.features.cache import FeatureCache, fingerprint, width_changes
from lapal_ext.features.data_checksum import DataChecksum
from lapal_ext.features.heads import check_pooled, find_head
from lapal_ext.features.layers import catch, channels_first, check_take, is_pointwise, layer_name
from lapal_ext.features.pooling import POOLS, Pooling, as_rows
from lapal_ext.features.sources import Data, check_order, count_rows
from lapal_ext.selection.progress import progress_bar
from lapal_ext.validation.scalars import check_choice, check_device, check_flag, check_integer, check_path, type_name
from lapal_ext.validation.tensors import STORAGE_DTYPES, is_finite

_AUTOCAST_DTYPES = (torch.bfloat16, torch.float16)


class ExtractedFeatures(NamedTuple):
    """Features of N rows in the order of the data, as ``LastLayerLaplace`` and ``select_batch`` take them."""

    features: Tensor  # [N, D], on the CPU; memory-mapped if they are in a file
    targets: Tensor | None  # [N] int64, on the CPU; None if the batches have no labels
    layer: str  # name of the layer in the model, "" for the model itself
    ids: Ids | None = None  # what names the rows, if the data say it: int64 [N], or N texts

    def __repr__(self) -> str:
        """Sizes, dtype and layer; never a matrix."""
        rows, columns = self.features.shape
        labels = "no labels" if self.targets is None else f"labels of {len(self.targets)} rows"
        dtype = str(self.features.dtype).removeprefix("torch.")
        return f"ExtractedFeatures({rows} rows of {columns} features in {dtype}, {labels}, layer {self.layer!r})"


@torch.no_grad()
def extract(
    model: nn.Module,
    data: Data,
    layer: str | nn.Module | None = None,
    take: str = "input",
    *,
    path: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    autocast: torch.dtype | None = None,
    dtype: torch.dtype = torch.float32,
    pool: str | None = None,
    progress: bool = False,
) -> ExtractedFeatures:
    """Run a model over data and keep the input or output of one of its layers.

    The model runs in evaluation mode and without gradients. Afterwards, also after an error, its modules have their
    previous modes, it is on its previous device, and no hook is left.

    Args:
        model: any torch module: a CNN, a timm, torchvision or transformers model, or a custom one.
        data: inputs [N, ...] or a dict of them, tensors or arrays; a Dataset of torch or of another library; a
            DataLoader that does not shuffle; or an iterable of batches or of items. A batch, or an item, is a tensor
            for ``model(inputs)``, a pair (inputs, labels), a triple (inputs, labels, ids), or a dict for
            ``model(**batch)``, from which ``labels`` or ``label`` is removed, and other keys that ``model.forward``
            does not take. A model whose ``forward`` takes one dict gets the dict. Labels are integers, ids integers or
            texts.
        layer: a name in ``model.named_modules()`` such as ``fc``, ``head`` or ``classifier.6``, or the module itself.
            By default the head: the nn.Linear, or convolution of one position, whose output the model returns, up to
            softmax or log-softmax. The first batch is compared; a layer that is named is taken as it is.
        take: ``input`` or ``output`` of the layer. ``output`` is for encoders without a head: of a pooling layer or,
            without ``layer``, of the model itself. ``output.NAME`` is a field of it, such as
            ``output.last_hidden_state``.
        path: a .npy or .safetensors file for the features, with labels in ``PATH.targets.npy`` and a journal in
            ``PATH.json``. Rows that are written survive a kill: the same call continues after them, or maps the file if
            it is complete. It checks model (structure and ``state_dict``), layer, options, number of rows, and
            the inputs and labels of some rows: 1,024 of tensors, 32 of a Dataset, evenly spread. Data that can only be
            read in their order, and items that are drawn anew at every read, are not compared. The whole file is read
            to verify its checksum.
        batch_size: rows per forward pass, if ``data`` is not in batches. Memory grows with it; other sizes give the
            same features up to rounding.
        device: where the model runs; by default its current device.
        autocast: run in mixed precision, ``torch.bfloat16`` or ``torch.float16``; by default not, even within
            ``torch.autocast``.
        dtype: of the features: float32, float64, float16, or bfloat16 (not in .npy). The posterior computes in float32
            or float64; a pool may be stored in half precision.
        pool: how a row is made of the tokens [B, T, D] of a layer that runs on each: ``last`` or ``first``, of those
            that ``attention_mask`` of the batch keeps, or their ``mean``. Language models that classify sequences need
            ``last``. Of a layer that is found, the first batch must give what the model returns. ``mean`` is also for
            the positions of a convolution.
        progress: show a progress bar (needs rich).

    Returns:
        Features [N, D], labels [N] or None, the name of the layer, and ids or None.

    Warns:
        UserWarning: the model returns a rising function of what the layer that is found gives, such as a sigmoid or a
            temperature; another layer may be meant.

    Raises:
        ValueError, TypeError: an argument or a batch is invalid, the layer cannot be used (it does not run exactly
            once, it gets no matrix [B, D], the model returns something else, or there are several heads: the message
            names the candidates), data are shuffled, or a feature is not finite (the message names the row). Rows
            before it are kept in ``path``.
        FileNotFoundError: the folder of ``path`` does not exist.
        StorageError: the files at ``path`` are damaged or have another origin; nothing is overwritten.

    One forward pass per batch, and one more of the first batch if the layer is to be found.
    """
    model = _check_model(model)
    check_take(take)
    if pool is not None:
        check_choice("pool", pool, POOLS)
    name = layer_name(model, layer, take)
    batch_size = check_integer("batch_size", batch_size, at_least=1)
    check_flag("progress", progress)
    if autocast is not None and autocast not in _AUTOCAST_DTYPES:
        raise ValueError(f"autocast must be torch.bfloat16, torch.float16 or None, got {autocast!r}")
    if dtype not in STORAGE_DTYPES:
        raise TypeError(f"dtype must be torch.float32, float64, bfloat16 or float16, got {dtype!r}")
    home = _device_of(model)
    place = home if device is None else check_device("device", device)
    rows = count_rows(data)
    check_order(data, kept=path is not None)
    store: _Memory | FeatureCache = _Memory(name)
    if path is not None:
        options = {"take": take if pool is None else f"{take}, {pool}", "autocast": autocast}
        store = _cache(path, model, data, name, options, dtype, rows)
    if store.complete and rows is not None:
        return _result(store)
    end, compared = 0, False
    searching = name is None and (store.layer is None or pool is not None)
    ids: list[Ids | None] = []
    with _evaluating(model, home, place), _uncompiled(), progress_bar("extracting", rows, shown=progress) as count:
        count(store.done)
        for first, read in read_batches(data, batch_size, store.done):
            end = first + read.rows
            if end <= store.done:
                continue
            if store.complete:
                raise StorageError(f"{path} holds {store.done} rows, and data have more: choose another path")

            batch = read.for_model(model)

            def forward(batch: Batch = batch) -> object:
                moved = batch.to(place)
                with torch.autocast(place.type, dtype=autocast, enabled=autocast is not None):
                    return _call(model, moved)

            if searching:
                head = find_head(model, forward, None if pool is None else Pooling(pool, batch.rows, read.mask))
                store.layer, compared, searching = head.name, head.pooled, False
                if head.caution is not None:
                    warn(head.caution, UserWarning)
            assert store.layer is not None
            module = model.get_submodule(store.layer) if store.layer else model
            seen = catch(module, store.layer, take, forward)
            caught = as_rows(seen.value, seen.what, batch.rows, pool, read.mask, channels_first=channels_first(module))
            if compared and pool is not None:  # in each batch: the first may have no padding, which needs a mask
                single = caught[(..., *[None] * (seen.value.dim() - 2))] if is_pointwise(module) else caught
                with torch.autocast(place.type, dtype=autocast, enabled=autocast is not None):
                    check_pooled(module, store.layer, pool, module(single).flatten(1), seen.result, first)
            kept = caught.to("cpu", dtype)
            _check_finite(caught, kept, first)
            if store.labelled not in (None, batch.targets is not None):
                raise ValueError(f"data must have labels in all batches or in none, which changes at row {first}")
            done = max(0, store.done - first)
            ids.append(batch.ids)
            if path is not None and batch.ids is not None:
                raise ValueError("path must be None for data with ids, the third part of a batch: leave them out")
            store.append(kept[done:], None if batch.targets is None else batch.targets[done:])
            count(len(kept) - done)
    if store.done == 0:
        raise ValueError("data must have at least one row, got none")
    if end < store.done and rows is None:
        raise StorageError(f"{path} holds {store.done} rows, and data have only {end}: choose another path")
    if rows not in (None, store.done):
        raise ValueError(f"data must give as many rows as its length, {rows}, got {store.done}")
    return _result(store)._replace(ids=_joined(ids))


class _Memory:
    """Features in memory, with the interface of ``FeatureCache``."""

    def __init__(self, layer: str | None) -> None:
        self.layer = layer
        self.done, self.complete = 0, False
        self._features: list[Tensor] = []
        self._targets: list[Tensor] = []

    @property
    def labelled(self) -> bool | None:
        return bool(self._targets) if self._features else None

    def append(self, features: Tensor, targets: Tensor | None) -> None:  # [n, D], [n]
        if self._features and features.shape[1] != self._features[0].shape[1]:
            raise ValueError(width_changes(self._features[0].shape[1], features.shape[1], self.done))
        self._features.append(features)
        if targets is not None:
            self._targets.append(targets)
        self.done += len(features)

    @outside_inference_mode
    def finish(self) -> tuple[Tensor, Tensor | None]:
        return torch.cat(self._features), torch.cat(self._targets) if self._targets else None


def _cache(
    path: str | os.PathLike[str],
    model: nn.Module,
    data: Data,
    layer: str | None,
    options: Mapping[str, object],
    dtype: torch.dtype,
    rows: int | None,
) -> FeatureCache:
    file = check_path("path", path)
    named = {name: None if value is None else str(value) for name, value in options.items()}
    origin = {"model": fingerprint(model), **named, "dtype": str(dtype), "rows": rows}
    return FeatureCache(file, origin, layer, dtype, DataChecksum(data))


def _joined(ids: Sequence[Ids | None]) -> Ids | None:
    given = [part for part in ids if part is not None]
    if not given:
        return None
    tensors = [part for part in given if isinstance(part, Tensor)]
    if len(given) != len(ids) or len(tensors) not in (0, len(given)):
        raise ValueError("data must have ids of one kind in all batches or in none")
    return torch.cat(tensors) if tensors else tuple(str(name) for part in given for name in part)


def _check_model(model: object) -> nn.Module:
    """Return the module itself where ``torch.compile`` wraps it, or raise a typed error unless it can be run."""
    if not isinstance(model, nn.Module):
        exported = hasattr(model, "graph_module") and hasattr(model, "module")
        hint = ", an exported program has no layers any more: pass the model that was exported" if exported else ""
        raise TypeError(f"model must be a torch.nn.Module, got {type_name(model)}{hint}")
    model = _unwrapped(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"model must have shapes, got a lazy {name!r}: run it on one batch before")
    return model


def _unwrapped(model: nn.Module) -> nn.Module:
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model


def _call(model: nn.Module, batch: Batch) -> object:
    try:
        return model(*batch.arguments, **batch.keywords)
    except (TypeError, AttributeError, LookupError) as error:
        if not (batch.arguments and isinstance(batch.arguments[0], dict)):
            raise
        argument = next(iter(inspect.signature(model.forward).parameters))
        raise TypeError(
            f"data must be a tensor, or have a key {argument!r} as forward of model takes it, or model must take a "
            f"dict, got dict with {', '.join(map(repr, batch.arguments[0]))}"
        ) from error
    except RuntimeError as error:
        expected = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        inputs = (*batch.arguments, *batch.keywords.values())
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        given = {value.dtype for value in tensors if value.is_floating_point() or value.dtype == torch.uint8}
        if expected is None or not given or given == {expected} or "type" not in str(error):
            raise
        raise TypeError(
            f"data must be {expected} like the parameters of model, got {', '.join(map(str, given))}: convert them "
            f"(to(torch.float32), or astype('float32') of an array), or pass autocast="
        ) from error


def _result(store: "_Memory | FeatureCache") -> ExtractedFeatures:
    assert store.layer is not None
    features, targets = store.finish()
    return ExtractedFeatures(features, targets, store.layer)


def _check_finite(caught: Tensor, kept: Tensor, first: int) -> None:  # [n, D], [n, D]
    if is_finite(kept):
        return
    row = first + int(kept.isfinite().all(1).logical_not().nonzero()[0])
    if is_finite(caught):
        raise ValueError(f"dtype must hold the features, row {row} of data exceeds the range of {kept.dtype}")
    raise ValueError(f"features must be finite, got NaN or infinity from row {row} of data")


def _device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))


@contextmanager
def _evaluating(model: nn.Module, home: torch.device, place: torch.device) -> Iterator[None]:
    """Put the model in evaluation mode and on ``place``; afterwards restore the modes of its modules and its device."""
    modes = [(module, module.training) for module in model.modules()]
    if place != home and any(tensor.device != home for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(f"device must be None for a model on several devices, got {place}")
    try:
        try:
            model.eval()
        except NotImplementedError as error:  # of modules of torch.export
            raise TypeError(
                f"model must have an evaluation mode, got a {type(model).__name__} without: pass the model that was "
                "exported"
            ) from error
        if place != home:
            model.to(place)
        yield
    finally:
        for module, mode in modes:  # parents first: train() also sets children, and may be overridden to do more
            if module.training != mode:
                module.train(mode)
        if place != home:
            model.to(home)


def _uncompiled() -> AbstractContextManager[object]:
    """Run compiled models eagerly: compiled code calls no hooks, or only those that existed when it was compiled."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
