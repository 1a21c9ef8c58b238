"""Videos to blocks of frames, decoded in child processes that may be killed. The rest of the project imports from here.

    who runs it            file            does
    the caller             pool.py         takes videos, yields FrameBlock and VideoEnd
    a thread of the pool   supervisor.py   gives videos to workers, listens to them, kills those past a deadline
                           process.py      one worker as seen from outside: child process, video, slots, deadlines
    a child process        worker.py       decodes videos one after the other (frames.py) with a decoder (backends/)

Between the thread and each child run small JSON messages and shared memory for the frames (wire.py). No decoder is
imported here: each brings a native library, so only child processes load one.
"""

from extract.decode.backends import DECODER_NAMES, DEFAULT_DECODER, MissingDecoderError, decoder_version
from extract.decode.completeness import is_complete
from extract.decode.containers import open_regular
from extract.decode.pool import DecodePool
from extract.decode.types import DecodeSettings, FrameBlock, Limits, VideoEnd, VideoRequest, parse_limits

__all__ = [
    "DECODER_NAMES",
    "DEFAULT_DECODER",
    "DecodePool",
    "DecodeSettings",
    "FrameBlock",
    "Limits",
    "MissingDecoderError",
    "VideoEnd",
    "VideoRequest",
    "decoder_version",
    "is_complete",
    "open_regular",
    "parse_limits",
]
