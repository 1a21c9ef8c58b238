"""Extraction on many machines, by Ray Data: the driver claims and commits, workers turn claims into shards.

    ledger -> driver -> Ray queue -> read task -> pool of actors (decode, forward, write aside) -> driver -> ledger

Everything that schedules, retries, moves and waits is Ray's. Nothing here is imported unless it is asked for.
"""
