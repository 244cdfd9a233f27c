"""How good the models rank against what a pair costs: one point per model, setting and rival."""
