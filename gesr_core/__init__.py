"""Distributed offline batch scoring for the early stage (pre-ranking) of a recommendation cascade."""

__version__ = "0.1.0"
