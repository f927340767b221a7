"""The one exception that means: the user's words are off. Imports nothing, so that the command line starts fast."""


class UserError(ValueError):
    """One line naming the field, the value seen, what is allowed and what to do; exit code 2, no traceback."""
