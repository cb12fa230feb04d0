"""What an operator does with queues and their dead letters."""
