"""MinIO made ready for posedrop: buckets, users, policies, notifications."""
