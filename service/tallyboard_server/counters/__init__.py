"""Counters: sharding, merging, exact and cached reads, streams, watches."""
