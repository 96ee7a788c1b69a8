"""What every entry file does around its story: one message instead of a traceback, and an exit status."""

import errno
import os
import sys
from collections.abc import Callable

from utils.errors import StorageFault, UserError

INTERRUPTED = 130  # 128 + SIGINT, what a shell reports after Ctrl-C
PIPE_CLOSED = 141  # 128 + SIGPIPE, what a shell reports when `| head` closed the pipe
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}


def run_command(main: Callable[[], None]) -> int:
    """Run `main` and return the exit status: 0 ok, 2 usage, 3 data, 4 environment, 5 disk, 130 interrupted.

    A UserError is printed as one message on standard error. Any other exception is a defect of ours and
    keeps its traceback. Use it as `sys.exit(run_command(main))`.
    """
    try:
        main()
    except UserError as error:
        return _report(str(error), error.exit_status)
    except KeyboardInterrupt:
        return _report("Interrupted.", INTERRUPTED)
    except BrokenPipeError:
        # Python flushes standard output once more at exit; there is nobody left to read it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        return _report(f"{error.filename or 'A file'}: {error.strerror}.", StorageFault.exit_status)
    return 0


def _report(message: str, exit_status: int) -> int:
    sys.stderr.write(f"Error: {message}\n")
    return exit_status
