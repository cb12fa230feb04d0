"""What a worker uses of its machine: threads, files, and a pipe to the event loop."""
