"""Pre-trained classifiers with an adapter: where they come from, and how they become a task."""
