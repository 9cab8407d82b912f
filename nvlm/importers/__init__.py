"""Other formats into our shards: one file per format, which reads, and the rest, which writes.

A reader (records.py) turns its source into numbered units of samples; run.py has processes turn
units into shards (shards.py). What a shard holds depends on the source and the options alone, never
on the number of processes or on interruptions.
"""
