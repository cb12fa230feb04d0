"""A load test: HTTP requests at an open arrival rate, until each user is stored."""
