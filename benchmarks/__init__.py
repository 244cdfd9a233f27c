"""Benchmarks: what the documents' figures come from. Each is one command and ends in one JSON line. Driver only."""
