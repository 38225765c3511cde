"""What the recipes say, against the official pipelines' defaults."""

import pytest

from mlx_video import recipes
from mlx_video.errors import UserError
from mlx_video.models.ltx.config import LTXModelConfig
from mlx_video.recipes import Defaults, Recipe, Stage
from mlx_video.sampling.samplers import Sampler
from mlx_video.types import AV
from tests.reference import vectors


def test_hq_is_two_stages_by_res_2s_with_some_of_the_lora():
    recipe = Defaults().hq(8, steps=3)
    first, second = recipe.stages
    assert list(first.sigmas) == vectors("modes", "ltx2_modes")["hq1.sigmas"].tolist()
    assert (first.scale, first.distilled_lora) == (0.5, 0.25)
    assert (second.scale, second.distilled_lora) == (1.0, 0.5)
    assert {first.sampler, second.sampler} == {Sampler("res_2s")}
    strengths = first.guidance.map(lambda g: (g.cfg, g.stg, g.modality, g.rescale))
    assert strengths == AV((3.0, 0.0, 3.0, 0.45), (7.0, 0.0, 3.0, 1.0))
    assert len(Defaults().hq(8).stages[0].sigmas) == 16
    assert recipe.sound_stage == 0


def test_strengths_that_were_given_replace_those_of_hq():
    given = {"cfg": 2.0, "stg": 1.0, "audio_cfg": 5.0}
    guidance = Defaults(stg_blocks=(28,)).hq(8, **given).stages[0].guidance
    assert guidance.map(lambda g: (g.cfg, g.stg, g.stg_blocks, g.rescale)) == AV(
        (2.0, 1.0, (28,), 0.45), (5.0, 1.0, (28,), 1.0)
    )


@pytest.mark.parametrize("usual", [(29,), (28,)])
def test_a_small_model_may_lack_the_usual_block_where_it_is_not_used(usual):
    defaults, small = Defaults(stg_blocks=usual), LTXModelConfig(4, 2, 8, 16)
    defaults.hq(8).check(small)
    with pytest.raises(UserError, match=f"block {usual[0]}; this .* has 4 blocks"):
        defaults.hq(8, stg=1.0).check(small)


def test_the_refined_dev_clip_has_the_sound_of_the_guided_stage():
    assert recipes.dev(4, two_stage=True).sound_stage == 0
    assert recipes.dev(4).sound_stage == 0
    assert recipes.distilled().sound_stage == 1


@pytest.mark.parametrize("sound", [-2, 1])
def test_sound_of_a_stage_that_there_is_not_is_refused(sound):
    recipe = Recipe("distilled", (Stage((1.0, 0.0)),), sound)
    with pytest.raises(
        UserError, match=f"from 0 to 0, or -1 for the last; got {sound}"
    ):
        recipe.check()
