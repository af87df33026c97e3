"""The mode of a softmax regression with a Gaussian prior: L-BFGS, and Newton's method where that is not enough."""
