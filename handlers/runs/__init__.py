"""Runs: planned by rules or when asked, queued, copied between names, told of, deleted."""
