"""Pack the headers of Lightricks' files, by which `mlx-video plan` foresees a run before they are fetched.

python -m benchmarks.store_headers, from the root of a clone; to be run again where tests/fixtures/manifests changes.
"""

import json
import lzma

from mlx_video.models.ltx.checkpoint.releases import RELEASES
from mlx_video.models.ltx.checkpoint.standins import HEADERS
from tests.published import headers


def main() -> None:
    text = json.dumps({r.name: headers(r) for r in RELEASES}, separators=(",", ":"))
    HEADERS.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))


if __name__ == "__main__":
    main()
