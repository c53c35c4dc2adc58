"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """A bad config, a bad data set or a bad result file, said in one sentence.

    The sentence names the file or the key, the value, and the remedy. The command-line programs
    print it without a traceback; any other exception is a bug and keeps its traceback.
    """
