"""Readers, training loop, checkpoint. Driver or a training worker."""
