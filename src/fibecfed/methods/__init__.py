"""Federated methods: pure functions on messages, tasks and data (contract: `core.method`)."""
