"""`python -m fuse`."""

from fuse.cli import main

main(prog_name="python -m fuse")
