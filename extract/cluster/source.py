"""Ray Data's way into the job: tasks that the driver puts into a Ray queue come out as rows, one block each."""

from collections.abc import Iterator
from typing import Any

import pyarrow
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask
from ray.util.queue import Queue


class QueueSource(Datasource):
    """Rows from `queue`, until it gives None. There is no end known beforehand: the driver claims as work is done."""

    def __init__(self, queue: Queue) -> None:
        super().__init__()
        self._queue = queue

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
        queue = self._queue
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(lambda: _rows(queue), unknown)]


def _rows(queue: Queue) -> Iterator[pyarrow.Table]:
    while (row := queue.get()) is not None:
        yield pyarrow.Table.from_pylist([row])
