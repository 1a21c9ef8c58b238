"""Imported by processes that are broken: training saves at every step, figures are drawn in no time."""

import fuse.report.html
import train.run

assert train.run.run.__kwdefaults__ is not None
train.run.run.__kwdefaults__ |= {"tick_seconds": 0.0, "checkpoint_seconds": 0.0}
for name in ("confusion", "per_class", "samples"):
    setattr(fuse.report.html, f"draw_{name}", lambda *_, name=name: {f"{name}.svg": b"drawn"})
