"""The stack's one error."""


class StackError(Exception):
    """The stack cannot go on. One line says why and, where there is one, the fix."""
