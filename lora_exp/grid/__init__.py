"""A grid, the runs of one command: `plan` says which, `queue` who gets them, `local` does them."""
