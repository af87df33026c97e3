"""The package's own exceptions. Shape, range and dtype faults are plain ValueError and TypeError."""

__all__ = ["NotFittedError", "NotPSDError", "RankError", "StorageError"]


class NotFittedError(RuntimeError):
    """A posterior was asked for something that needs its covariance before ``fit`` was called."""


class NotPSDError(ArithmeticError):
    """A covariance stopped being positive semi-definite: 1 + s v <= 0, or a clearly negative variance."""


class RankError(RuntimeError):
    """Another process of the group failed, was called with other arguments, or no longer answers."""


class StorageError(ValueError):
    """A saved file is damaged, foreign, of something else than what is asked for, or written by a newer version."""
