"""The buckets: object keys, the records in them, and the store that holds them."""
