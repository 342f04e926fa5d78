"""The one exception that is meant for a person."""


class UserError(ValueError):
    """Something the person who started the run can put right: a path, a row, a setting.

    The message is a sentence that says what is wrong, where, and what to do. The command line prints it without a traceback.
    """
