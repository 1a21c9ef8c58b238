"""`python -m extract`."""

from cache.common.interrupts import end_silently

end_silently()

from extract.cli import main  # noqa: E402

main(prog_name="python -m extract")
