"""Tools of an operator: queues, their dead letters, and whether both are set up right."""
