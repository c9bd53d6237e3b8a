"""Redis: keys, scripts, links and batches. Knows nothing of RPC."""
