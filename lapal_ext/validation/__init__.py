"""Checks of the arguments of public functions, with typed errors that name the argument."""
