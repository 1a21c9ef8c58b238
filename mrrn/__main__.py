"""`python -m mrrn`, the same as `mrrn`."""

from mrrn.cli import main

if __name__ == "__main__":  # a process that this one spawns imports it, too
    main(prog_name="mrrn")
