"""The SQL that makes the ledger's tables."""

from typing import Final

SCHEMA: Final = """
CREATE TABLE videos (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    path TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'pending',
    claim INTEGER,
    shard INTEGER,
    position INTEGER,
    reason TEXT NOT NULL DEFAULT '',
    num_frames INTEGER NOT NULL DEFAULT 0,
    declared_frames INTEGER,
    decoder_errors INTEGER NOT NULL DEFAULT 0,
    seconds REAL NOT NULL DEFAULT 0
);
CREATE INDEX videos_free ON videos (number) WHERE status = 'pending' AND claim IS NULL;
CREATE INDEX videos_claimed ON videos (claim) WHERE claim IS NOT NULL;
CREATE INDEX videos_status ON videos (status);
CREATE INDEX videos_shard ON videos (shard) WHERE shard IS NOT NULL;
CREATE TABLE claims (token INTEGER PRIMARY KEY AUTOINCREMENT, owner TEXT NOT NULL, expires REAL NOT NULL);
CREATE TABLE shards (
    number INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    content TEXT NOT NULL,
    num_videos INTEGER NOT NULL,
    num_frames INTEGER NOT NULL,
    num_bytes INTEGER NOT NULL,
    environment TEXT NOT NULL
);
"""

FILES: Final = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL,
    hash TEXT NOT NULL,
    first_hash TEXT NOT NULL
);
"""
"""The files as they were extracted, and the hash of the first one; made in ledgers of earlier versions by a write."""
