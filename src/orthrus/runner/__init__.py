"""The layout of a forward pass, and the executors that run it."""
