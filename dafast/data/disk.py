"""A full disk, told so that one knows what it was and what to do."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says for want of room: on the disk, in a quota, under a limit."""


class DiskFullError(OSError):
    """There is no room for a file; the message names it and the remedy."""


@contextlib.contextmanager
def writing(what: object) -> Iterator[None]:
    """Within it a full disk is a `DiskFullError` that names `what` was to be written.

    The system's own error knows the name of a file that it cannot open, and not that of one that
    it cannot write to.
    """
    try:
        yield
    except DiskFullError:
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DiskFullError(
            f"cannot write {what}: {error.strerror}. Free some space, or choose another disk; what "
            "is finished stays, and the same command goes on from there"
        ) from error
