"""Jobs: ingest, infer and render, each an attempt that claims, works and publishes."""
