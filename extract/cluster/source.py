"""Ray Data's way into the job: tasks that the driver puts into a Ray queue come out as rows, one block each."""

from collections.abc import Iterator
from typing import Any

import pyarrow
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.util.queue import Queue

from cache.common.errors import MrrnError


class QueueSource(Datasource):
    """Rows from `queue`, until it gives None. There is no end known beforehand: the driver claims as work is done."""

    supports_distributed_reads = False
    """The reading task runs on the driver's machine: whatever loses the one loses the other."""

    def __init__(self, queue: Queue, deaths: Any) -> None:
        """`deaths` is the handle of a `Deaths` actor."""
        super().__init__()
        self._queue, self._deaths = queue, deaths

    def get_name(self) -> str:
        """As the dashboard shows it."""
        return "Claims"

    def estimate_inmemory_data_size(self) -> int | None:
        """Not known."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One task that lives as long as the job."""
        queue, deaths = self._queue, self._deaths
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(lambda: _rows(queue, deaths), unknown)]


def _rows(queue: Queue, deaths: Any) -> Iterator[pyarrow.Table]:
    if ray.get(deaths.begin.remote("reading")):
        # What the first one took from the queue is gone. Ray would begin anew without a word, and never end.
        raise MrrnError("the process that hands out claims was killed")
    while (row := queue.get()) is not None:
        yield pyarrow.Table.from_pylist([row])
