"""DataFrame -> DataFrame, pure: histories, candidates, features, requests, shards. Driver only."""
