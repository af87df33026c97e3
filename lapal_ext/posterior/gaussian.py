"""The state of a posterior: a layer's mean with the covariance and the precision of its weights; upkeep and files."""

import copy
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from lapal_ext.errors import NotFittedError, StorageError
from lapal_ext.likelihood import CURVATURES
from lapal_ext.posterior import precision as fitting
from lapal_ext.posterior import state as storage
from lapal_ext.posterior.class_names import check_class_names
from lapal_ext.posterior.head import StandardizedLinear
from lapal_ext.validation.arrays import Array
from lapal_ext.validation.tensors import (
    ShapeSpec,
    check_choice,
    check_dense,
    check_device,
    check_finite,
    check_flag,
    check_number,
    check_overflow,
    check_tensors,
)

_ATTRIBUTES = ("prior_precision", "curvature", "has_bias", "fitted")
_LATER_ATTRIBUTES = ("class_names",)  # which states of earlier versions lack


class _Queue(NamedTuple):
    """What the precision has yet to gain, with what gains it: of one piece, so that threads may read it at once."""

    precision: Tensor  # [D, D]
    observations: tuple[tuple[Tensor, Tensor], ...]  # rows [n, D] and their weights [n]


class GaussianLinear(StandardizedLinear):
    """Class row k of the weights is Normal(mean_k, Sigma); Sigma starts as the prior I / prior_precision.

    Arguments and attributes are those of ``LastLayerLaplace``, which adds what moves this state and what it predicts.
    """

    covariance: Tensor

    def __init__(
        self,
        weight: Array,  # [C, D]
        prior_precision: float,
        curvature: str,
        bias: Array | None,  # [C]
        class_names: Iterable[str] | None = None,  # C of them
    ) -> None:
        super().__init__(weight, bias, class_names)
        self.prior_precision = check_number("prior_precision", prior_precision, above=0.0)
        smallest = torch.finfo(self.mean.dtype).tiny
        if not smallest <= self.prior_precision <= 1.0 / smallest:
            raise ValueError(
                f"prior_precision must lie in [{smallest:.2g}, {1.0 / smallest:.2g}], where it has an inverse in "
                f"{self.mean.dtype}, got {self.prior_precision:g}"
            )
        check_choice("curvature", curvature, CURVATURES)
        self.curvature = curvature
        self.fitted = False
        identity = torch.eye(self.mean.shape[1], dtype=self.mean.dtype, device=self.mean.device)
        self.register_buffer("covariance", identity / self.prior_precision)
        # ``precision`` is a property over its buffer, which register_buffer would take for a clash of names.
        self._buffers["precision"] = identity * self.prior_precision
        self._queue: _Queue | None = None

    @property
    def precision(self) -> Tensor:  # [D, D]
        """Inverse of the covariance; updates queue their rows and the first read adds them."""
        precision = self._buffers["precision"]
        assert precision is not None
        return precision

    @property
    def _buffers(self) -> dict[str, Tensor | None]:
        """The buffers, the precision up to date: whoever lists, moves, saves or copies them reads it."""
        self._bring_precision_up_to_date()
        return self._stored_buffers

    @_buffers.setter
    def _buffers(self, buffers: dict[str, Tensor | None]) -> None:
        self.__dict__["_buffers"] = buffers

    @property
    def _stored_buffers(self) -> dict[str, Tensor | None]:
        """The buffers as they are, perhaps with a queue for the precision."""
        stored: dict[str, Tensor | None] = self.__dict__["_buffers"]
        return stored

    @torch.no_grad()
    def refresh(self) -> Self:
        """Invert the precision anew, which removes what many updates have added up in rounding; returns self."""
        self.require_fitted()
        self.covariance = fitting.inverse(self.precision).to(self.mean.dtype)
        return self

    @torch.no_grad()
    def drift(self) -> float:
        """Distance of the covariance from the inverse of the precision, |Sigma Lambda - I| / sqrt(D), in float64."""
        self.require_fitted()
        product = self.covariance.double() @ self.precision.double()
        product.diagonal().sub_(1.0)
        distance = product.norm()
        check_overflow("posterior", distance)
        return float(distance) / math.sqrt(product.shape[0])

    def set_precision(
        self,
        precision: Tensor,  # [D, D] float64, inner
    ) -> None:
        """Make this the precision and its inverse the covariance; the posterior counts as fitted from here on."""
        stored = precision.to(self.mean.dtype)
        check_overflow("features", stored)
        covariance = fitting.inverse(precision).to(self.mean.dtype)
        self._queue = None
        self._stored_buffers.update(covariance=covariance, precision=stored)
        self.fitted = True

    def set_updated(
        self,
        mean: Tensor,  # [C, D], inner
        covariance: Tensor,  # [D, D]
        features: Tensor,  # [n, D], inner
        weights: Tensor,  # [n]
    ) -> None:
        """Make these the mean and the covariance, and note what the precision gains from n observations.

        That product itself waits for a reader, or for as many rows as columns.
        """
        buffers = self._stored_buffers
        precision = buffers["precision"]
        assert precision is not None
        queue = self._queue or _Queue(precision, ())
        # Not as attributes, which torch sets by way of ``_buffers``.
        buffers.update(mean=mean, covariance=covariance)
        self._queue = queue._replace(observations=(*queue.observations, (features, weights)))
        if sum(len(queued) for _, queued in self._queue.observations) > features.shape[1]:
            self._bring_precision_up_to_date()

    def clone(self) -> Self:
        """Return a copy that shares no memory with this one."""
        return copy.deepcopy(self._successor())

    def _successor(self) -> Self:
        """Return a copy on the same matrices, for an update of it, which makes new ones.

        The precision alone stays shared, until someone reads the new one. No method changes a buffer in place, so
        neither of the two sees what becomes of the other. A ``clone`` copies the matrices, for as long as it takes to
        absorb ten labels.
        """
        copied = type(self).__new__(type(self))
        queue = self._queue  # before the buffers: another thread may read the precision, and then there is none
        for name, value in self.__dict__.items():
            copied.__dict__[name] = value.copy() if isinstance(value, (dict, list, set)) else value
        copied.__dict__["_queue"] = queue
        for name, buffer in self._stored_buffers.items():
            if buffer is not None and buffer.dim() < 2:
                copied._stored_buffers[name] = buffer.clone()
        return copied

    def require_fitted(self) -> None:
        """Raise NotFittedError before ``fit``."""
        if not self.fitted:
            raise NotFittedError("posterior must be fitted: call fit(features), with features[:0] for the prior alone")

    @torch.no_grad()
    def _bring_precision_up_to_date(self) -> None:
        queue: _Queue | None = self.__dict__.get("_queue")
        if queue is None:
            return
        features, weights = (torch.cat(parts) for parts in zip(*queue.observations, strict=True))
        # Another thread that is here too stores the same; one that finds no queue any more finds this.
        self._stored_buffers["precision"] = fitting.add_observations(queue.precision, features, weights)
        self._queue = None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the posterior to one safetensors file with a checksum; atomic, and without pickle.

        Raises:
            ValueError, TypeError: NaN, infinity or half precision in the posterior, which ``load`` would refuse.
        """
        buffers = dict(self.named_buffers())
        check_tensors({"mean": ShapeSpec.parse("[C, inner]")}, {"mean": self.mean})
        for name, buffer in buffers.items():
            check_finite(name, buffer)
        storage.write(path, buffers, self.get_extra_state())

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device | None = None,
    ) -> Self:
        """Read a saved posterior.

        Args:
            path: what ``save`` wrote.
            device: where it goes, the CPU by default.

        Raises:
            FileNotFoundError: no such file.
            StorageError: damaged, foreign, or written by a newer version.
        """
        device = None if device is None else check_device("device", device)
        tensors, attributes = storage.read(path)
        try:
            posterior = cls._empty(tensors["mean"], attributes)
            posterior.load_state_dict({**tensors, "_extra_state": attributes})
        except (KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise StorageError(f"{os.fspath(path)} does not hold a posterior: {error}") from error
        return posterior.to(device)

    @classmethod
    def _empty(cls, mean: Tensor, attributes: dict[str, Any]) -> Self:
        weight, bias = (mean[:, :-1], mean[:, -1]) if attributes["has_bias"] else (mean, None)
        return cls(weight, attributes["prior_precision"], attributes["curvature"], bias=bias)

    def get_extra_state(self) -> dict[str, Any]:
        """Attributes that belong to the state but are no tensors (called by ``state_dict``)."""
        return {name: getattr(self, name) for name in (*_ATTRIBUTES, *_LATER_ATTRIBUTES)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what ``get_extra_state`` returned (called by ``load_state_dict``)."""
        for name in (*_ATTRIBUTES, *(name for name in _LATER_ATTRIBUTES if name in state)):
            setattr(self, name, state[name])

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load all of a state or, unlike torch's own method, nothing of it.

        On its own it raises a typed error; as a part of another module it reports names that are missing or unknown,
        and values that do not fit, in torch's way.
        """
        state = {name.removeprefix(prefix): state_dict[name] for name in state_dict if name.startswith(prefix)}
        own = (*self._buffers, "_extra_state")
        missing = [name for name in own if name not in state]
        if missing and (prefix or not state):
            missing_keys += [prefix + name for name in missing]
            unexpected_keys += [prefix + name for name in state if name not in own]
            return
        try:
            self._check_state({name: state[name] for name in own} if prefix else state)
        except (TypeError, ValueError) as error:
            if not prefix:
                raise
            error_msgs.append(f"{prefix.rstrip('.')}: {error}")
            return
        self._queue = None
        # torch fills those there are, and a successor may share one. With their values, for the case that it fails.
        self._buffers = {name: None if old is None else old.clone() for name, old in self._buffers.items()}
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def _check_state(self, state: Mapping[str, Any]) -> None:
        _check_names("state_dict", state, (*self._buffers, "_extra_state"))
        buffers = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        tensors = {f"state_dict[{name!r}]": check_dense(f"state_dict[{name!r}]", state[name]) for name in buffers}
        shapes = [ShapeSpec("storage", tuple(map(str, buffer.shape))) for buffer in buffers.values()]
        check_tensors(dict(zip(tensors, shapes, strict=True)), tensors)
        for name, tensor in tensors.items():
            check_finite(name, tensor.to(self.mean.dtype))
        attributes = state["_extra_state"]
        if not isinstance(attributes, Mapping):
            raise TypeError(f"state_dict['_extra_state'] must be a dict, got {type(attributes).__name__}")
        _check_names("state_dict['_extra_state']", attributes, _ATTRIBUTES, _LATER_ATTRIBUTES)
        check_number("prior_precision", attributes["prior_precision"], above=0.0)
        check_choice("curvature", attributes["curvature"], CURVATURES)
        check_flag("fitted", attributes["fitted"])
        if check_flag("has_bias", attributes["has_bias"]) != self.has_bias:
            raise ValueError(f"has_bias must be {self.has_bias} as in this posterior, got {attributes['has_bias']}")
        check_class_names(attributes.get("class_names"), self.num_classes)


def _check_names(what: str, given: Mapping[str, Any], expected: Sequence[str], optional: Sequence[str] = ()) -> None:
    """Raise KeyError unless the names in ``given`` are the expected ones, and perhaps some of the optional ones."""
    missing, unknown = sorted(set(expected) - set(given)), sorted(set(given) - {*expected, *optional})
    if missing or unknown:
        raise KeyError(f"{what} must hold {', '.join(expected)}; missing: {missing}, unknown: {unknown}")
