"""Videos to blocks of frames, in child processes that may be killed."""
