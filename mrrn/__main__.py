"""`python -m mrrn`, the same as `mrrn`."""

from mrrn.cli import main

main(prog_name="mrrn")
