"""The clips that models can make: one rule, of which doors warn or which they refuse by."""

import pytest

from mlx_video.clip_limits import MOST_FRAMES, Grid, VideoPixelShape
from mlx_video.errors import UserError

GRID = Grid(8, 64, 32, least_height=160, least_width=64)


@pytest.mark.parametrize(
    "asked, made",
    [
        ((9, 192, 96), (9, 192, 96)),
        ((10, 192, 96), (9, 192, 96)),
        ((1, 1, 1), (1, 192, 64)),  # 160 is no multiple of 64
        ((9, 224, 48), (9, 256, 64)),
        ((9, 222, 79), (9, 192, 64)),
    ],
)
def test_what_is_refused_names_what_it_is_snapped_to(asked, made):
    clip, said = VideoPixelShape(*asked, 24.0), []
    nearest = GRID.snapped(clip, said.append)
    assert nearest == VideoPixelShape(*made, 24.0) == GRID.nearest(nearest)
    GRID.check(nearest)
    assert len(said) == (asked[0] != made[0]) + (asked[1:] != made[1:])
    if said:
        with pytest.raises(UserError, match=f"{clip} does not.* Nearest: {nearest}."):
            GRID.check(clip)


def test_smaller_and_shorter_clips_are_possible_down_to_the_least():
    clip = VideoPixelShape(33, 320, 128, 24.0)
    assert [s[1:3] for s in GRID.smaller(clip)] == [(256, 96), (192, 64)]
    assert [s.frames for s in GRID.shorter(clip)] == [25, 17, 9]
    for smaller in (*GRID.smaller(clip), *GRID.shorter(clip)):
        GRID.check(smaller)


def test_a_warning_and_a_refusal_give_the_same_rules():
    clip, said = VideoPixelShape(10, 100, 100, 24.0), []
    GRID.snapped(clip, said.append)
    sides = "height must be a multiple of 64, at least 160 and width must be a multiple of 32"
    frames = "frames must be 1 + a multiple of 8"
    assert said == [
        f"100x100 became 96x192: {sides}.",
        f"10 frames became 9: {frames}.",
    ]
    with pytest.raises(UserError) as refused:
        GRID.check(clip)
    assert f"grid: {frames} and {sides}. Nearest" in str(refused.value)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"frames": 1, "width": 0}, "got 1 frame of 0x64. For"),
        ({"frames": 0}, "at least 1 frame .* got 0 frames of 64x64. For example: 121"),
        ({"height": -64}, "at least 1 frame and 1 pixel a side"),
        ({"frames": MOST_FRAMES + 1}, "at most 16,384 pixels a side and 144,001 fr"),
        ({"width": 16_385}, "at most 16,384 pixels a side .* For example: 121"),
        ({"fps": 0.0}, "fps must be from 1 to 240 .* got 0.0. The usual value is 24"),
        ({"fps": 240.5}, "fps must be from 1 to 240"),
        ({"fps": float("nan")}, "fps must be from 1 to 240"),
    ],
)
def test_what_no_model_can_make_is_refused(change, said):
    clip = VideoPixelShape(MOST_FRAMES, 64, 64, 240.0)
    clip.check()
    with pytest.raises(UserError, match=said):
        clip._replace(**change).check()
