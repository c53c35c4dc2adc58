"""Data sets: where images come from, how they are stored, how training reads them."""
