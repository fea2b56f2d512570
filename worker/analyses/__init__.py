"""The analyses that come with posedrop, one a file."""
