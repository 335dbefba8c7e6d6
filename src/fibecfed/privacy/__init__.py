"""Differential privacy: what is charged, how updates are clipped, where noise comes from, and what may be said of it."""
