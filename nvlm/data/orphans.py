"""Worker processes that end with the process that started them, also when that is killed."""

from __future__ import annotations

import os
import threading
from multiprocessing import connection, parent_process


def end_with_parent() -> None:
    """To be called in a worker process. A pool's workers would wait forever without their parent,
    and write on beside those of the next run."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
