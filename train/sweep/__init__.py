"""Many runs at once: a grid of settings, worker processes, a table."""
