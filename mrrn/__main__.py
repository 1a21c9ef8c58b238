"""`mrrn`, and the same as `python -m mrrn`."""

from cache.common.interrupts import end_silently

end_silently()

from mrrn.cli import main  # noqa: E402

if __name__ == "__main__":  # a process that this one spawns imports it, too
    main(prog_name="mrrn")
