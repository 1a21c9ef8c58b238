"""`mrrn`, and the same as `python -m mrrn`."""

import sys

from cache.common.interrupts import end_silently
from mrrn import NOT_HERE

end_silently()
if NOT_HERE:
    sys.exit(NOT_HERE)

from mrrn.cli import main  # noqa: E402

if __name__ == "__main__":  # a process that this one spawns imports it, too
    main(prog_name="mrrn")
