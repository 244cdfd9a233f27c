"""Tensors -> tensors, no parameters; a plain form and a fast form of each. Knows torch alone."""
