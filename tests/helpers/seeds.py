"""Random tests that can be repeated: a case has a seed, and a failing one is printed as the command that repeats it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "MRRN_SEED"


def seeds(count: int, first: int = 0) -> list[int]:
    """`count` seeds from `first` on; or the one that MRRN_SEED names."""
    return [int(os.environ[VARIABLE])] if VARIABLE in os.environ else list(range(first, first + count))


@contextmanager
def replayable(seed: int) -> Iterator[None]:
    """Adds the command that repeats this case to an error inside."""
    try:
        yield
    except BaseException as error:
        test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
        error.add_note(f"again: {VARIABLE}={seed} .venv/bin/python -m pytest '{test}'")
        raise
