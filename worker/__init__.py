"""The workers: ingest, infer and render, and the child process that does the dangerous part."""
