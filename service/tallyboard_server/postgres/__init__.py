"""What Postgres holds: the schema, the partitions, and the counters as of the last checkpoint."""
