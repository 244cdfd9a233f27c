"""How well the models rank, beside rivals, on two public data sets: `python -m benchmarks.quality`. Driver only."""
