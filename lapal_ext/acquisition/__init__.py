"""Which rows to label: one module per strategy, listed in ``registry``."""
