"""What `gpu_check.py` found, as text: from the status and the figures of each step, as they stand in summary.json."""

from collections.abc import Mapping
from typing import Any

PROOFS = ("kernels", "tests")
"""Steps whose success is what "right" means."""

EXTRACTION_AIM = 21_000
"""Frames a second at which UCF-101 takes two minutes."""

EPOCH_AIM = 1.0
"""Seconds of an epoch of HMDB-51, one level."""


def is_right(status: Mapping[str, str]) -> bool:
    """Whether all proofs succeeded and no other step failed."""
    return all(status.get(name) == "ok" for name in PROOFS) and "failed" not in status.values()


def verdict(gpu: str, status: Mapping[str, str], figures: Mapping[str, Any]) -> list[str]:
    """The findings on the GPU of this name: status and figures by step."""
    failed = [name for name, found in status.items() if found == "failed"]
    if failed:
        said = f"WRONG: {', '.join(failed)} failed; log.txt says why"
    elif not gpu:
        short = [f"{name} ({found})" for name, found in status.items() if found in ("out of time", "missing")]
        said = f"REHEARSED, the GPU tests skipped: {', '.join(short) or 'the steps that were run ended well'}"
    elif is_right(status):
        said = "RIGHT: all GPU tests passed, none was skipped, and every benchmark's own check held"
    else:
        said = "NOT KNOWN: " + ", ".join(f"{name} ({status.get(name)})" for name in PROOFS if status.get(name) != "ok")
    return [
        f"GPU: {gpu or 'none (a rehearsal on the CPU: figures mean nothing)'}",
        said,
        *extraction_words(figures.get("extract"), figures.get("profile") or []),
        *training_words(figures),
        *sru_words(figures.get("sru")),
        *candidate_words(figures.get("candidates")),
    ]


def extraction_words(found: Any, parts: list[Any]) -> list[str]:
    """Frames a second and what limits them."""
    if not found:
        return ["extraction: not measured"]
    median, shares = found["median"], found["turns"][-1].get("shares", "")
    whole, network, decoding = (median[name] for name in ("end_to_end", "network", "decoding"))
    lower = "the network" if network < decoding else "decoding"
    reached = whole / min(network, decoding)
    limit = (
        f"{lower} limits it" if reached >= 0.9 else f"what lies between them limits it (the driving thread: {shares})"
    )
    return [
        f"extraction: {whole:,.0f} frames/s (aim {EXTRACTION_AIM:,}); the network alone {network:,.0f}, decoding alone "
        f"{decoding:,.0f}: {reached:.0%} of the lesser, so {limit}",
        *(f"  {part['name']}: {part['frames_per_second']:,.0f} frames/s" for part in parts),
    ]


def training_words(figures: Mapping[str, Any]) -> list[str]:
    """Seconds of an epoch, measured step by step and in real runs."""
    lines = []
    for precision in ("fp32", "bf16"):
        for table in (figures.get(f"train-{precision}") or {"tables": []})["tables"]:
            ours = next(row for row in table["rows"] if row["name"] == "ours")
            lines.append(
                f"training, {table['level']}, {precision}: {ours['milliseconds']:.2f} ms a step, "
                f"{ours['epoch_seconds']:.2f} s an epoch (aim {EPOCH_AIM:g}); {table['outside_products']:.0%} of it "
                "is outside matrix products"
            )
        lines += [f"python -m train, {precision}: {row}" for row in figures.get(f"run-{precision}") or []]
    return lines or ["training: not measured"]


def sru_words(found: Any) -> list[str]:
    """The SRU against its matrix products."""
    return [
        f"SRU, {table['size']}, {table['dtype']}: {row['ratio']:.2f} times its matrix products (aim 1.15)"
        for table in (found["tables"] if found else [])
        for row in table["rows"]
        if row["name"].startswith("SRU")
    ]


def candidate_words(found: Any) -> list[str]:
    """What might become faster, and by how much: no part of what is right."""
    return [f"candidate, {each['name']}: {each['said']}" for each in found or []]
