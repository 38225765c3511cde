"""What scripts written for other MLX ports import and type: each name works, or is answered in one sentence."""

import json
import warnings
from importlib import import_module
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from PIL import Image as Picture

from mlx_video import cli, generate, generate_dev, names
from mlx_video.cli import commands
from mlx_video.conditioning import VideoConditionByLatentIndex, apply_conditioning
from mlx_video.conditioning.latent import LatentState
from mlx_video.convert import sanitize_transformer_weights, sanitize_vae_encoder_weights
from mlx_video.events import Planned, Written
from mlx_video.inputs import Image
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.models.ltx.config import LTXModelConfig
from mlx_video.models.ltx.ltx import LTXModel
from mlx_video.models.ltx.rope import precompute_freqs_cis
from mlx_video.models.ltx.text_encoder import GemmaTextEncoder
from mlx_video.models.ltx.video_vae.encoder import VideoEncoder, load_vae_encoder
from mlx_video.models.ltx.video_vae.tiling import TilingConfig
from mlx_video.plan import Phase, Plan
from mlx_video.postprocess import save_video
from tests.checkpoints import MODEL
from tests.media_reading import read_clip

DOORS = ("mlx_video.generate", "mlx_video.generate_dev", "mlx_video.generate_av")
PROMPT = ["--prompt", "a ball"]


@pytest.fixture
def asked(model, here, monkeypatch):
    """Runs ``mlx-video generate`` with words, without making the clip; gives the exit code, and the job and output it asks for."""
    jobs = []

    phases = Phase("libraries", 0, 0.0), Phase("none", 0, 0.0)
    plan = Plan(phases, 1.0, None)

    def nothing(job, output, options):
        jobs.append((job, output))
        yield Planned(job, str(output.path), plan)
        yield Written(str(output.path), "x.json", 0.0, 0)

    def ask(*words: str):
        monkeypatch.setattr(commands, "run_job", nothing)
        code = cli.main(["generate", "--model-repo", str(model), *PROMPT, *words])
        return code, *(jobs.pop() if jobs else (None, None))

    return ask


# What is imported


def test_names_are_where_scripts_look_for_them():
    places = [
        *((door, name) for door in DOORS for name in names.__all__),
        *(
            ("mlx_video.convert", f"sanitize_{part}_weights")
            for part in ("transformer", "vae", "vae_encoder", "audio_vae", "vocoder")
        ),
        ("mlx_video.generate", "generate_video"),
        ("mlx_video.generate_dev", "generate_video_dev"),
        ("mlx_video.generate_av", "generate_video_with_audio"),
        ("mlx_video.convert", "convert"),
        ("mlx_video.conditioning", "apply_conditioning"),
        ("mlx_video.conditioning", "VideoConditionByLatentIndex"),
        ("mlx_video.postprocess", "save_video"),
        ("mlx_video.models.ltx.video_vae.encoder", "load_vae_encoder"),
    ]
    absent = [(at, name) for at, name in places if not hasattr(import_module(at), name)]
    assert absent == []


def test_weights_are_sanitized_into_the_networks_that_they_fit(model):
    raw = mx.load(str(model / MODEL))
    block = json.loads(mx.load(str(model / MODEL), return_metadata=True)[1]["config"])
    transformer = LTXModel(LTXModelConfig.from_dict(block["transformer"]))
    transformer.load_weights(list(sanitize_transformer_weights(raw).items()))
    encoder = load_vae_encoder(model / MODEL)
    taken = sanitize_vae_encoder_weights(raw)
    assert isinstance(encoder, VideoEncoder)
    for name, value in tree_flatten(encoder.parameters()):
        assert mx.array_equal(value, taken[name]), name


def test_a_condition_needs_its_latent_alone():
    latent = mx.ones((1, 4, 1, 2, 2))
    state = LatentState.fresh(mx.zeros((1, 8, 4)), mx.zeros((1, 3, 8, 2)))
    state = apply_conditioning(state, [VideoConditionByLatentIndex(latent=latent)])
    assert state.denoise_mask[0, :, 0].tolist() == [0] * 4 + [1] * 4


def test_tiles_in_space_or_in_time_alone():
    assert TilingConfig.named("spatial") == TilingConfig.spatial_only()
    assert TilingConfig.named("temporal") == TilingConfig.temporal_only()


def test_positions_in_bfloat16_are_warned_of():
    grid = mx.zeros((1, 3, 4, 2))
    with warnings.catch_warnings(action="error"):
        precompute_freqs_cis(grid, 12)
    with pytest.warns(UserWarning, match="bfloat16 .* give them in float32"):
        precompute_freqs_cis(grid.astype(mx.bfloat16), 12)


def test_a_text_encoder_enhances_prompts():
    class Scripted(GemmaTextEncoder):
        def __init__(self):
            pass

        def generate(self, instructions, request, **sampling):
            yield f"A reply. {request}"

    assert Scripted().enhance_t2v("a cat").endswith("a cat")


@pytest.mark.parametrize("kind", [np.asarray, list, mx.array])
def test_frames_become_a_file(kind, here):
    frames = kind(np.full((9, 64, 96, 3), 99, np.uint8))
    save_video(frames, "clip.mp4", fps=12)
    read, fps, audio, _ = read_clip("clip.mp4")
    assert (len(read), read[0].shape, fps, audio) == (9, (64, 96, 3), 12, None)


# What is typed


@pytest.mark.parametrize(
    "words, answer",
    [
        (["--image-strength", "0.8"], "the strength follows the frame, as in --image cat.png 0 0.8."),
        (["--image-frame-idx=8"], "the frame follows the picture, as in --image cat.png 8."),
        (["--stream"], "every clip is written while it is decoded; leave it out."),
        (["--max-tokens", "99"], "Gemma ends an enhanced prompt itself; leave it out."),
        (["--temperature", "0.7"], "another --seed gives another enhanced prompt; leave it out."),
    ],
)  # fmt: skip
def test_an_option_that_is_gone_is_answered(words, answer, asked, capsys):
    assert asked(*words)[0] == cli.BAD_INPUT
    flag = words[0].partition("=")[0]
    assert capsys.readouterr().err == f"error: There is no option {flag} any more: {answer}\n"  # fmt: skip


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["-i", "cat.png"], lambda job, _: job.request.inputs == (Image(str(Path.cwd() / "cat.png")),)),
        (["-i", "cat.png", "0", "0.5"], lambda job, _: job.request.inputs == (Image(str(Path.cwd() / "cat.png"), 0, 0.5),)),
        (["--text-encoder-repo", "a/b"], lambda job, _: job.files.text_encoder == "a/b"),
        (["--text-encoder-repo=a/b"], lambda job, _: job.files.text_encoder == "a/b"),
        (["--tiling", "spatial"], lambda job, _: job.request.tiling == "spatial"),
        (["--tiling", "temporal"], lambda job, _: job.request.tiling == "temporal"),
        (["--save-frames", "-o", "a.mp4"], lambda _, output: output.frames == Path("a_frames")),
        (["-o", "b/a.mp4", "--save-frames"], lambda _, output: output.frames == Path("b/a_frames")),
        (["--save-frames", "b"], lambda _, output: output.frames == Path("b")),
        (["--verbose"], lambda job, _: job.request.prompt == "a ball"),
        (["--output", "x.mp4"], lambda _, output: output.path == Path("x.mp4")),
        (["--output-path", "x.mp4"], lambda _, output: output.path == Path("x.mp4")),
        (["--frames", "17", "--frame-rate", "25"], lambda job, _: job.request.shape[::3] == (17, 25)),
        (["-n", "17", "-H", "64", "-W", "128", "-s", "3"], lambda job, _: job.request.shape[:3] == (17, 64, 128) and job.request.seed == 3),
    ],
)  # fmt: skip
def test_an_option_works_as_it_did(words, wanted, asked):
    Picture.new("RGB", (64, 64)).save("cat.png")
    code, job, output = asked(*words)
    assert code == 0 and wanted(job, output)


@pytest.mark.parametrize("variant", ["dev", "distilled"])
@pytest.mark.parametrize("frames, made", [(100, 97), (10, 9), (33, 33), (2, 1)])
def test_frames_are_rounded_and_that_is_said(variant, frames, made, asked, capsys):
    words = "--variant", variant, "-n", str(frames)
    code, job, _ = asked(*words, *["--stg-blocks", "1"] * (variant == "dev"))
    assert code == 0 and job.request.shape.frames == made
    said = (
        f"warning: {frames} frames became {made}: frames must be 1 + a multiple of 8.\n"
    )
    assert (said in capsys.readouterr().err) is (frames != made)


def test_a_function_does_so_too(model, here, caplog, monkeypatch):
    jobs = []
    monkeypatch.setattr(generate, "make", lambda job, *_: jobs.append(job))
    generate_dev.generate_video_dev("a ball", num_frames=100, files=Files(model))
    assert jobs[0].request.shape.frames == 97 and "100 frames became 97" in caplog.text
