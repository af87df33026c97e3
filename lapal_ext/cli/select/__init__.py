"""``lapal-ext select``: which rows of a pool to label next."""
