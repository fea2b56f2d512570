"""Upkeep: the reconciler, retention, and looking anew at what was refused."""
