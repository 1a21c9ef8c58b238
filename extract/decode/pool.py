"""The decode pool: videos in, blocks of frames and outcomes out, whatever the files contain."""

import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final

from extract.decode.supervisor import Cancelled, Result, Supervisor
from extract.decode.types import DecodeSettings, FrameBlock, VideoEnd, VideoRequest

AHEAD: Final = 6
"""Videos queued for each worker, so that none waits for the consumer to ask again."""


class DecodePool:
    """A context manager that decodes videos in child processes, which live as long as it does.

        with DecodePool(DecodeSettings()) as pool:
            for item in pool.decode([("a/b", Path("/videos/a/b.avi"))]):
                match item:
                    case FrameBlock(): use(item.frames_FHW3); item.release()
                    case VideoEnd(): record(item.outcome)

    Blocks of different videos come mixed, those of one video in order, then exactly one VideoEnd for each video. The
    workers wait while the consumer holds on to their blocks.
    """

    def __init__(self, settings: DecodeSettings) -> None:
        self.settings = settings
        self._results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._decoding = False
        self._broken: BaseException | None = None

    def __enter__(self) -> "DecodePool":
        self._supervisor = Supervisor(self.settings, self._results)
        self._thread = threading.Thread(target=self._supervisor.run, name="decode-supervisor", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._supervisor.stop()
        self._thread.join()

    def decode(self, videos: Iterable[tuple[str, Path] | VideoRequest]) -> Generator[FrameBlock | VideoEnd, None, None]:
        """Decode `videos`, pairs of id and path or requests, taken one by one as there is room, in the caller's thread.

        Leaving the loop early gives up what is under way. One `decode` at a time. Raises MissingDecoderError or
        DecodeError if workers do not start; whatever is wrong with a video never raises.
        """
        assert not self._decoding, "one decode at a time"
        if self._broken is not None:
            raise self._broken
        self._decoding = True
        waiting = iter(videos)
        under_way = 0
        try:
            while True:
                while under_way < AHEAD * self.settings.workers and (video := next(waiting, None)) is not None:
                    request = video if isinstance(video, VideoRequest) else VideoRequest(*video)
                    self._supervisor.add(replace(request, path=Path(request.path).absolute()))
                    under_way += 1
                if not under_way:
                    return
                item = self._results.get()
                if isinstance(item, BaseException):
                    self._broken = item
                    raise item
                assert not isinstance(item, Cancelled)
                under_way -= isinstance(item, VideoEnd)
                yield item
        finally:
            if under_way and self._broken is None:
                self._give_up()
            self._decoding = False

    def _give_up(self) -> None:
        """Drop everything under way, so that the pool can be used again."""
        if not self._thread.is_alive():
            return  # the pool was left first, as when the consumer's loop raised
        self._supervisor.cancel()
        while not isinstance(self._results.get(), Cancelled | BaseException):
            pass
