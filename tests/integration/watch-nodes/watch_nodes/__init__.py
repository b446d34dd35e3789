"""A test of large frames over real processes."""
