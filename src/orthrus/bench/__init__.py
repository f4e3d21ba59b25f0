"""Measuring: tasks with real prompts, runs with provenance, comparisons that can fail."""
