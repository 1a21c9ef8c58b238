"""Shared memory that carries frames from a decode worker to its supervisor: a few slots that go round.

The memory has no name in any file system, so nothing is left behind however its users end; its pages exist from the
first time they are written to.
"""

import mmap
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class RingShape:
    """How a ring is divided."""

    slots: int
    """Blocks that can be under way at once."""
    slot_bytes: int
    """Bytes of a slot, whole pages: room for one block."""

    @classmethod
    def holding(cls, slots: int, block_bytes: int) -> "RingShape":
        """Slots that hold at least `block_bytes` each."""
        pages = -(-block_bytes // mmap.PAGESIZE)
        return cls(slots, pages * mmap.PAGESIZE)


class Ring:
    """One worker's slots, mapped into this process. Numpy views keep the mapping alive after `close`."""

    def __init__(self, descriptor: int, shape: RingShape) -> None:
        self.shape = shape
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, shape.slots * shape.slot_bytes)

    @classmethod
    def create(cls, shape: RingShape) -> "Ring":
        """A new ring; its descriptor is handed to the worker."""
        descriptor = os.memfd_create("mrrn-frames", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, shape.slots * shape.slot_bytes)
        return cls(descriptor, shape)

    def slot(self, index: int) -> NDArray[np.uint8]:
        """The whole slot, flat."""
        if not 0 <= index < self.shape.slots:
            raise IndexError(f"slot {index} of a ring of {self.shape.slots}")
        return np.frombuffer(self._memory, np.uint8, self.shape.slot_bytes, index * self.shape.slot_bytes)

    def forget(self, index: int) -> None:
        """Give the slot's pages back to the system; its content becomes zeros."""
        self._memory.madvise(mmap.MADV_REMOVE, index * self.shape.slot_bytes, self.shape.slot_bytes)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.descriptor)
