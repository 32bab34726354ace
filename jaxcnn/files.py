"""Files that are either whole or not there."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from jaxcnn.errors import InputError, reason


def write_whole(path: Path, save: Callable[[Path], None]) -> None:
    """Runs `save` on a temporary file beside `path`, then renames it: readers see the old file or the new one.

    Raises:
        InputError: when the folder or the disk does not take the file.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        save(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"cannot write {path}: {reason(error)}; free space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
