"""Extraction on many machines, by Ray: the driver claims and commits, workers turn claims into staged shards.

    ledger -> driver -> workers (actors: decode, forward, stage the shard) -> driver -> ledger

Nothing here is imported unless it is asked for.
"""
