"""Bucket events: received, recorded, followed; those that can't be read are kept."""
