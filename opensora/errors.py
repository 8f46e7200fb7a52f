"""The error of this project's own checks."""


class UserError(ValueError):
    """Something the user can mend: the message names the file or flag, the value and the remedy.

    Commands print it as one line. Every other error keeps its traceback.
    """
