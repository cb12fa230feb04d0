"""The benchmark's errors."""


class BenchError(Exception):
    """A measurement is not possible. One line says why."""
