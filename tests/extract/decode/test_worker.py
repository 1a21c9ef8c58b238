"""What a decode worker keeps of FFmpeg's messages."""

import fcntl
import os
import subprocess
import sys

SCRIPT = """
import os
from extract.decode.worker import ErrorLog
log = ErrorLog()
counts = []
os.write(2, b"[h264 @ 0x55aa] error\\nnot a message\\n[mov,mp4 @ 0x1] [aac @ 0x2] two names\\n[unfinished @ 0x3] ")
counts.append(log.count_new())
os.write(2, b"line\\n")
counts.append(log.count_new())
counts.append(log.count_new())
for _ in range(30):
    os.write(2, b"[h264 @ 0x55aa] error\\n" * 10_000)
    counts.append(log.count_new())
print(counts, os.fstat(2).st_size)
"""


def test_messages_are_counted_once_and_not_kept_for_ever() -> None:
    log = os.memfd_create("log")
    fcntl.fcntl(log, fcntl.F_SETFL, os.O_APPEND)
    run = subprocess.run([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=log, check=True, text=True)
    os.close(log)
    counts, size = run.stdout.rsplit(maxsplit=1)
    assert counts == str([2, 1, 0, *[10_000] * 30])
    assert int(size) < 2 << 20
