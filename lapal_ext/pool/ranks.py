"""Processes that make one selection together: they go on together, or all of them stop.

Before every message the ranks tell each other that they are well and what they are about to send. So an error on one
rank is an error on all of them, at their next message and with its text, and ranks that were called with different
arguments are told so instead of waiting for each other. A rank whose process has died is noticed by the process group:
at once where its connections close, else after the group's timeout.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import torch
from torch import Tensor, distributed

from lapal_ext.errors import RankError

_TEXT = 400  # bytes of an error's message that the other ranks are told
_ADD, _COLLECT, _DONE = range(3)


class Alone:
    """One process, which has nobody to talk to."""

    rank = 0
    size = 1

    def together(self) -> AbstractContextManager[None]:
        """See ``Ranks``."""
        return nullcontext()

    def add(self, value: Tensor) -> Tensor:
        """See ``Ranks``."""
        return value

    def collect(self, value: Tensor) -> Tensor:
        """See ``Ranks``."""
        return value[None]

    def from_first(self, compute: Callable[[], Tensor], like: Tensor) -> Tensor:  # noqa: ARG002
        """See ``Ranks``."""
        return compute()

    def agree(self, **values: object) -> None:
        """See ``Ranks``."""


class Ranks:
    """The processes of a torch.distributed group, this one among them.

    Args:
        group: of gloo, nccl or another backend that can add and gather.

    Raises:
        TypeError: no process group, or one that this process is not in.
    """

    def __init__(self, group: object) -> None:
        if not distributed.is_available() or not isinstance(group, distributed.ProcessGroup):
            raise TypeError(
                f"group must be a torch.distributed process group that this process is in, got {type(group).__name__}"
            )
        self._group = group
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        on_gpu = "nccl" in distributed.get_backend(group)
        self._device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Make an error of the body on one rank an error on all: elsewhere a RankError with its text.

        The ranks wait for each other at the end, so that none returns a result that another has not.
        """
        try:
            yield
            self._meet(_DONE, 0)
            # The threads of gloo still let go of the last message, for which they need the interpreter, and whoever
            # ends the process now may make them abort it: a barrier, without tensors, waits without holding that.
            with _lost_rank():
                distributed.barrier(self._group)
        except RankError:
            raise
        except (Exception, KeyboardInterrupt) as error:  # Ctrl-C in a notebook ends no process
            with suppress(RankError):
                self._meet(_DONE, 0, error)
            raise

    def add(self, value: Tensor) -> Tensor:
        """Sum of the values of all ranks, the same bits on each."""
        self._meet(_ADD, value.numel())
        total = value.to(self._device, copy=True).contiguous()
        if total.numel() > 0:
            with _lost_rank():
                distributed.all_reduce(total, group=self._group)
        return total.to(value.device)

    def collect(self, value: Tensor) -> Tensor:  # [size, *shape]
        """Values of all ranks, in their order."""
        self._meet(_COLLECT, value.numel())
        return self._gathered(value)

    def from_first(self, compute: Callable[[], Tensor], like: Tensor) -> Tensor:
        """What rank 0 computes, of the shape and the dtype of ``like``; the others do not call it."""
        return self.add(compute() if self.rank == 0 else torch.zeros_like(like))

    def agree(self, **values: object) -> None:
        """Raise ValueError on all ranks unless the values are the same on all; the first that is not is named.

        Tensors are compared by their bits, anything else by its text.
        """
        numbers = self.collect(torch.tensor([_digest(value) for value in values.values()]))  # [size, values]
        for number, name in enumerate(values):
            others = (numbers[:, number] != numbers[0, number]).nonzero()
            if len(others) > 0:
                raise ValueError(
                    f"{name} must be the same on every rank, rank {int(others[0])} has another than rank 0"
                )

    def _meet(self, kind: int, numel: int, error: BaseException | None = None) -> None:
        """Wait until every rank is here, and raise RankError unless all are well and about to send the same."""
        text = b"" if error is None else _text(error)
        states = self._gathered(torch.tensor([int(error is not None), kind, numel]))
        failed = states[:, 0].nonzero()[:, 0].tolist()
        if failed:
            letters = torch.zeros(_TEXT, dtype=torch.uint8)
            letters[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
            texts = self._gathered(letters)
            reasons = [
                f"rank {rank} stopped with {bytes(texts[rank].tolist()).rstrip(bytes(1)).decode(errors='ignore')}"
                for rank in failed
            ]
            raise RankError("; ".join(reasons))
        if not bool((states == states[0]).all()):
            raise RankError("the ranks of group must all be called with the same arguments, and were not")

    def _gathered(self, value: Tensor) -> Tensor:  # [size, *shape]
        parts = [torch.empty_like(value, device=self._device) for _ in range(self.size)]
        with _lost_rank():
            distributed.all_gather(parts, value.to(self._device).contiguous(), group=self._group)
        return torch.stack(parts).to(value.device)


def _digest(value: object) -> int:
    """A number of 64 bits that is the same for equal values alone, as far as anybody will ever see."""
    digest = hashlib.sha256()
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(repr(value).encode(errors="replace"))
    return int.from_bytes(digest.digest()[:8], "big", signed=True)


def _text(error: BaseException) -> bytes:
    """What the other ranks are told, at most as long as a message; an error may have no text that can be sent."""
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001 whatever its __str__ raises
        text = type(error).__name__
    return text.encode(errors="replace")[:_TEXT]


@contextmanager
def _lost_rank() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankError(f"a rank of group no longer answers: {error}") from error


def join(group: object) -> Alone | Ranks:
    """The ranks of ``group``, or this process alone where there is none."""
    return Alone() if group is None else Ranks(group)
