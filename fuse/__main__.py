"""`python -m fuse`."""

from cache.common.interrupts import end_silently

end_silently()

from fuse.cli import main  # noqa: E402

main(prog_name="python -m fuse")
