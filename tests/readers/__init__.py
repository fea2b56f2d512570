"""Other people's tools on tables of ours, each in an environment of its own: ``make readers``."""
