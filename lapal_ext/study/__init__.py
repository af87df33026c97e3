"""Experiments on real data that show what the package does; needs the extra ``demo``."""
