"""The dual-view decoder: one backbone, two sets of attention projections, one cache."""
