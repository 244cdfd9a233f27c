"""Set-up: from a bare checkout to a virtual environment in which plain `spark-submit` runs the jobs.

Needs the standard library alone, because it runs before anything is installed. `make env` starts bootstrap/env.py.
"""
