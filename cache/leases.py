"""Who holds what in a cache, as text for the user; takes away what nobody renews."""

import time

from cache.common.errors import CacheError
from cache.ledger import LEASE_SECONDS, WATCH_SECONDS, HeldLease
from cache.processes import host_and_pid, is_alive, is_dead, stays_same
from cache.store import FeatureCache


def lease_text(lease: HeldLease) -> str:
    """One line: who, whether that process is alive, what it holds, since when it has not renewed that."""
    what = f"{lease.num_videos:,} videos (claim {lease.token})" if lease.token else "the right to extend the cache"
    state = "which has ended" if is_dead(lease.owner) else "alive" if is_alive(lease.owner) else "not of this machine"
    renewed = lease.expires - LEASE_SECONDS
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(renewed)) if abs(renewed) < 1e11 else "at no sane time"
    return f"{host_and_pid(lease.owner)}, {state}: {what}, last renewed {when}"


def break_leases(cache: FeatureCache, seconds: float = WATCH_SECONDS) -> list[str]:
    """Take all leases away, after watching for `seconds` that nobody renews them. Returns what was done.

    Commits of their owners are refused from then on. Raises `CacheError`, and changes nothing, if a process of this
    machine that holds one is alive, or if one is renewed.
    """
    storage = cache.storage
    held = storage.leases()
    for lease in held:
        if is_alive(lease.owner):
            raise CacheError(
                f"{host_and_pid(lease.owner)} is alive and works on {cache.path}: stop it (`kill` with its number), "
                "and what it holds is free at once; nothing was changed"
            )
    unknown = [lease for lease in held if not is_dead(lease.owner)]
    if unknown and not stays_same(storage.leases, seconds):
        raise CacheError(
            f"{', '.join(sorted({host_and_pid(lease.owner) for lease in unknown}))} still works on {cache.path}: its "
            "lease was renewed, or ended by itself, just now. Stop it there, or wait; nothing was changed"
        )
    for lease in held:
        storage.end_lease(lease)
    return [f"broke the lease of {lease_text(lease)}" for lease in held]
