"""A fleet of workers that stores ten million messages in a day, simulated from measured costs."""
