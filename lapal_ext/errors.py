"""The package's own exceptions. Wrong shapes, ranges and dtypes are plain ValueError and TypeError."""

__all__ = ["NotFittedError", "NotPSDError", "RankError", "StorageError"]


class NotFittedError(RuntimeError):
    """The covariance of a posterior is needed, and ``fit`` has not been called."""


class NotPSDError(ArithmeticError):
    """A covariance is not positive semi-definite (1 + s v <= 0, a clearly negative variance) or too inaccurate."""


class RankError(RuntimeError):
    """Another process of the group failed, was called with other arguments, or no longer responds."""


class StorageError(ValueError):
    """A saved file is damaged, or its format, its version or its contents are not the expected ones."""
