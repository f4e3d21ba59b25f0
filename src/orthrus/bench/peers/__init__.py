"""Peers: what a user could run instead, one file each."""
