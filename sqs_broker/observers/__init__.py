"""Those who see what happens to messages, and change nothing of it: the log, metrics, traces."""
