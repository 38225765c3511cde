"""How ``ltx-2-tiny`` was made: the small world it knows, the training of its parts, and how good it became."""

import mlx_video  # noqa: F401, isort: skip (puts a fast BLAS under MLX, which must come before MLX itself)
