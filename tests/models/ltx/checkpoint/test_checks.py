"""What is refused or warned of before a run, by names and configs alone."""

import pytest

from mlx_video.errors import UserError
from mlx_video.models.ltx.checkpoint.checks import check_variant
from mlx_video.models.ltx.checkpoint.layouts import OFFICIAL, Layout


def test_a_file_is_of_the_variant_that_its_name_holds(tmp_path):
    for name, variant, wrong in (
        ("ltx-2-dev", "distilled", True),
        ("ltx-2-distilled", "dev", True),
        ("ltx-2-dev-distilled", "distilled", False),
        ("ltx-2-dev-distilled", "dev", False),
        ("ltx-2-mine", "dev", False),
        ("ltx-2-dev", None, False),
    ):
        file = tmp_path / f"{name}.safetensors"
        file.touch()
        layout = Layout(OFFICIAL, file)
        if not wrong:
            check_variant(layout, variant)
            continue
        with pytest.raises(UserError, match=f"choose --variant {name[6:]}"):
            check_variant(layout, variant)
