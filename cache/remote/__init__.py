"""A cache in an object store: immutable shards, a log of commit records, a working copy on this machine."""
