"""What a worker takes of its machine: threads, files, and a pipe to the event loop."""
