"""The Gaussian posterior over a last layer: its state, its fit, and its updates."""
