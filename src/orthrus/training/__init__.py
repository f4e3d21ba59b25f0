"""Training: teach the diffusion view of a frozen backbone to draft what the AR view will say."""
