"""`python -m cache`."""

from cache.common.interrupts import end_silently

end_silently()

from cache.cli import main  # noqa: E402

main(prog_name="python -m cache")
