"""Strategies that choose the rows to label: one module each, listed in ``registry``."""
