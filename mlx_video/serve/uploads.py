"""Pictures that arrive over HTTP: bounded, looked at, and kept under a name of the server's own."""

import secrets
import shutil
from pathlib import Path
from typing import BinaryIO

from mlx_video.disk import file_errors
from mlx_video.errors import UserError


def keep_upload(file: BinaryIO, folder: Path) -> str:
    """The name under which a picture was kept in ``folder``; the sender's name for it is not used.

    Raises ``UserError`` where it is no picture that a clip can begin with; nothing is kept then.
    """
    from mlx_video.pictures import read_picture  # with codecs, which only pictures need

    name = f"picture_{secrets.token_hex(16)}"
    path = folder / name
    try:
        with file_errors("The picture", "kept"), open(path, "xb") as kept:
            shutil.copyfileobj(file, kept)
        read_picture(path)
    except UserError as error:
        path.unlink(missing_ok=True)
        raise type(error)(str(error).replace(str(path), "The picture")) from None
    return name
