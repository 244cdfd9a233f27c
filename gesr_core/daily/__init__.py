"""The steps of score_daily, composed from io, join, runtime and sink for jobs/score_daily.py. Driver only."""
