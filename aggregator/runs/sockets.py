"""The folder of a local federation's unix sockets: short, private, and at the same place whenever its run is started again.

    with socket_folder(Path("/srv/fedmed/runs/demo")) as sockets:
        ...                                   # /tmp/fedmed-1f3a9c0b7d52, mode 0700; gone when the block ends

A socket's path holds about 100 bytes, so it cannot lie in the run's folder; and each site's site.yaml holds it, so it cannot
be a new one at each start. Its name is drawn from the run folder's path.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedmed.errors import FederationError


@contextmanager
def socket_folder(run_folder: Path) -> Iterator[Path]:
    """The folder, made when it is missing, and removed at the end.

    Raises:
        FederationError: there is something of that name that is not this user's own, closed folder.
    """
    name = hashlib.sha256(os.fsencode(run_folder.resolve())).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"fedmed-{name}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()  # what a killed run has left, or a trap that somebody else has laid
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise FederationError(
                f"{folder} is not this user's own folder with mode 0700, which the sites' sockets need",
                "see whose it is and remove it, or set TMPDIR to a folder of your own",
            ) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
