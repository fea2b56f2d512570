"""The index: what the buckets hold, in SQLite, to be listed, searched and counted."""
