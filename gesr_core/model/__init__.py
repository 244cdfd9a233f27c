"""The nn.Modules: encode_user, encode_items, score. Knows torch alone (and scipy, for k-means)."""
