"""Drafters: what proposes the tokens that a pass verifies. This room needs torch alone."""
