"""Training: the diffusion view of a frozen backbone learns to draft the tokens of the AR view."""
