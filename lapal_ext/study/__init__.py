"""Experiments on real data that show what the package does; needs the extra ``experiment``, the demo ``demo`` alone."""
