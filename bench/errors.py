"""The benchmark's one error."""


class BenchError(Exception):
    """A measurement is not possible. One line says why."""
