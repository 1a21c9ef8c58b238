"""Packets of a video stream that held a picture which did not come out of FFmpeg's decoder, without an error.

Each packet is given its number, which FFmpeg copies to the frame that comes of it. No damage are: packets too small for
a picture (XviD writes "the same again" as one of 7 bytes), packets that an edit list leaves out, pictures that are
never shown (VP8), the second field of an interlaced picture, and pictures at the start of a cut that need earlier ones.
"""

from typing import Final

from av.packet import Packet
from av.video.frame import VideoFrame

NO_PICTURE_BYTES: Final = 19
"""Up to this size FFmpeg takes an MPEG-4 packet for one without a picture (MAX_NVOP_SIZE)."""

LONGEST_DELAY: Final = 128
"""Packets after which a frame has come out if it ever does: reordering takes up to 16, threads some more."""


class LostPackets:
    """Counts packets that gave no frame, in bounded memory."""

    def __init__(self, codec: str) -> None:
        """`codec`: FFmpeg's name of the stream's decoder."""
        self._hides_pictures = codec in ("vp8", "libvpx")
        self._sent = self._lost = self._damaged = 0
        self._waiting: dict[int, bool] = {}
        """Numbers of packets without a frame so far, in order; whether each is a key frame."""
        self._leading: int | None = None
        """The last packet of those at the start that may need earlier ones; None before the first frame."""
        self._traceable = True
        """Whether this decoder copies the numbers."""

    def sent(self, packet: Packet) -> None:
        """A packet with data goes into the decoder."""
        self._sent += 1
        self._damaged += packet.is_corrupt
        packet.opaque = self._sent
        if packet.size > NO_PICTURE_BYTES and not packet.is_discard and not self._is_hidden(packet):
            self._waiting[self._sent] = packet.is_keyframe
            if len(self._waiting) > LONGEST_DELAY:
                self._settle(self._sent - LONGEST_DELAY)

    def received(self, frame: VideoFrame) -> None:
        """A frame has come out."""
        number = frame.opaque
        if not isinstance(number, int):
            self._traceable = False
            return
        self._waiting.pop(number, None)
        if frame.interlaced_frame:
            self._waiting.pop(number + 1, None)
        if self._leading is None:
            self._leading = number

    def doubt(self, *, ended: bool) -> str:
        """What was broken; empty if nothing was. Before the video has `ended` the decoder still holds some packets."""
        if ended:
            self._settle(self._sent)
        texts = {"marked as damaged": self._damaged, "without a frame": self._lost * self._traceable}
        return "; ".join(f"{count} packet{'s' if count != 1 else ''} {text}" for text, count in texts.items() if count)

    def _settle(self, up_to: int) -> None:
        """Count what was sent up to a number and is still without a frame."""
        while self._waiting and (number := next(iter(self._waiting))) <= up_to:
            is_key = self._waiting.pop(number)
            if not is_key and self._leading is not None and number <= self._leading + 1:
                self._leading = max(self._leading, number)
            else:
                self._lost += 1

    def _is_hidden(self, packet: Packet) -> bool:
        """Whether it is a VP8 picture that serves others alone (show_frame in RFC 6386, 9.1)."""
        return self._hides_pictures and not memoryview(packet)[0] & 0x10
