"""What a message is, whether it may run, and how its delivery ends. No I/O, no clients."""
