"""What people read after a run, computed from records alone."""
