"""The error of the stack."""


class StackError(Exception):
    """The stack cannot continue. The text is one line: the reason and, if there is one, the fix."""
