"""Orchestration only: when the jobs run, in what order, and what happens when one fails. Knows jobs by name alone."""
