"""Observers of messages (log, metrics) and brackets around runs (traces)."""
