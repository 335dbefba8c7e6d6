"""The report of a single run: what was learned, how far it has converged, clients, classes, examples, what was sent, what it cost."""
