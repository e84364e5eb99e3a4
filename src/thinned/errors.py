"""The errors that users see: one line that says what, where and what to do."""


class ThinnedError(Exception):
    """Something failed while a correct request was carried out.

    The command line prints the message without a traceback and exits with `exit_code`.
    """

    exit_code = 1


class RequestError(ThinnedError):
    """The request itself was wrong: an option, a path or a file that cannot be used."""

    exit_code = 2
