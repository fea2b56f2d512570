"""The JSON records that live in the buckets. Everything posedrop knows is in one of them.

Each is written once (or, for a video's record and an attempt's heartbeat, by one writer alone) and
carries a ``schema`` version, so that a later posedrop can read what an earlier one wrote.
"""
