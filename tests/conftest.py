"""The suite runs as a user's machine does: MLX is set up by the package itself."""

import mlx_video  # noqa: F401  first, so that its BLAS is loaded before mlx.core
