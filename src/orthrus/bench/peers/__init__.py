"""Peers: other systems that run the same weights, one module each."""
