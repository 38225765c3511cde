"""A transformer large enough for its weights to outweigh all else."""

import pytest
from mlx.utils import tree_flatten

from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.config import LTXModelConfig
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.weights import save_folder
from tests.reference import checkpoint


@pytest.fixture(scope="session")
def large(tmp_path_factory) -> Source:
    """A converted folder of 12 blocks, the tiny model's but for 256 channels of video: 53 MB in float32."""
    block = dict(checkpoint()[1]["transformer"])
    block |= dict(num_layers=12, attention_head_dim=64, cross_attention_dim=256)
    model = LTXModel(LTXModelConfig.from_dict(block))
    folder = tmp_path_factory.mktemp("large") / "transformer"
    save_folder(folder, dict(tree_flatten(model.parameters())), block)
    return Source.of(folder)
