"""Arguments of the public functions: checked with typed errors that name the argument."""
