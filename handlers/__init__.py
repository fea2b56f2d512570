"""The edge: HTTP API, bucket notifications, planning and the index."""
