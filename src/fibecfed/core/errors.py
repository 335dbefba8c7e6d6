"""The errors a user sees as a sentence instead of a traceback."""


class UserError(Exception):
    """Something the user can fix before anything is trained: exit code 2. The text says what was got, what was expected, what to do."""


class RunFailed(Exception):
    """A run that stopped while it was under way: exit code 1, resumable. The text names client, phase, round and tensor where it can."""


class Diverged(RunFailed):
    """A run whose losses or tensors are not finite any more: resumed, it would stop at the same place again."""
