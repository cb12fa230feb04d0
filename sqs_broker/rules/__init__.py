"""The rules: what a message is, whether it may run, and what becomes of it. No I/O, no clients."""
