"""Spark in: sessions, and role + ds -> DataFrame, schema-checked and version-pinned. Driver only."""
