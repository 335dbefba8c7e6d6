"""Federations across machines, on Flower: the only part that knows `flwr`.

server app ── transport ──Flower── relay (one process per message) ──local socket── resident client
"""
