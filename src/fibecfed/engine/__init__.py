"""The federated run: the loop over rounds, both ends of an exchange, and what survives a crash."""
