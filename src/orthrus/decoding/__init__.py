"""Decoding: noise, sampling, a reference implementation (plain AR decoding), and the cycles, which give its tokens."""
