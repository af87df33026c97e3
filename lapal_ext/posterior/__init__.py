"""The Gaussian posterior over a last layer: its state, how it is fitted, and how it absorbs labels."""
