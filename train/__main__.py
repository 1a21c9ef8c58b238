"""`python -m train`."""

from cache.common.interrupts import end_silently

end_silently()

from train.cli import main  # noqa: E402

main(prog_name="python -m train")
