"""Ranking and calibration metrics, computed in Spark. Driver only."""
