"""Latents, flow matching and distillation at a tiny size, up to a clip from the public pipeline."""

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_video.conditioning.latent import VideoConditionByLatentIndex
from mlx_video.models.ltx.checkpoint.source import Source
from mlx_video.models.ltx.connector import embed_prompts
from mlx_video.models.ltx.loading.components import Components
from mlx_video.models.ltx.loading.residency import Residency
from mlx_video.models.ltx.patchify import initial_states, noised
from mlx_video.models.ltx.x0 import X0Model
from mlx_video.pipeline import Pipeline, Request
from mlx_video.recipes import distilled
from mlx_video.sampling.schedules import STAGE_1_SIGMAS, ltx2_scheduler
from mlx_video.types import AV, VideoPixelShape
from tiny import distil, latents, model, text, train_transformer, training
from tiny.denoiser import AUDIO_WEIGHT, Denoiser, Slope, velocity_loss
from tiny.distil import (
    Change,
    Guide,
    Start,
    Student,
    contexts,
    draw_start,
    keep,
    teach,
    walk,
)
from tiny.latents import Encoders, Latents, encode, make, read
from tiny.model import CONFIGS, TEXT_TOKENS, TRANSFORMER, fresh, load, store
from tiny.muon import Muon
from tiny.train_transformer import (
    Batch,
    draw_batch,
    draw_shape,
    draw_sigmas,
    empty,
    features,
    lesson,
    measure,
    new_denoiser,
    normal,
)
from tiny.training import Plan, train
from tiny.world import held_out, random_scene

pytestmark = pytest.mark.slow

SHAPE = VideoPixelShape(9, 64, 64, 24.0)
TINY = {**TRANSFORMER, "num_layers": 1}
SENTENCES = ["a red ball bounces", "a blue star spins above a green floor"]


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """One block, and files in a folder of the test's own."""
    mx.random.seed(0)
    monkeypatch.setitem(CONFIGS, "transformer", TINY)
    monkeypatch.setattr(train_transformer, "SMALL", 64)
    monkeypatch.setattr(distil, "SMALL", 64)
    for module in (model, latents, training, train_transformer):
        monkeypatch.setattr(module, "WORK", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return text.fresh_encoder(tmp_path_factory.mktemp("work") / "text_encoder")


@pytest.fixture
def clips(encoder):
    """Latents of 64 clips of 17 frames and 64 pixels: one of two flat ones each, as its sentence says."""
    rng = np.random.default_rng(0)
    kind = np.arange(64) % 2
    flat = rng.standard_normal((2, 1, 128))[kind]
    ids, _ = encoder.tokenizer.tokenize(SENTENCES, TEXT_TOKENS)
    ids = np.array(ids, np.int16)[kind][:, None]
    video, audio = (mx.array(np.repeat(flat, n, 1), mx.float16) for n in (12, 18))
    return Latents(video, audio, ids)


@pytest.fixture
def denoiser():
    """Random in every layer, so that whatever goes in comes out changed."""
    return Denoiser(fresh("transformer"), new_denoiser().connectors)


# ---- latents


@pytest.fixture(scope="module")
def encoders(encoder):
    mx.random.seed(0)
    return Encoders(fresh("video_encoder"), fresh("audio_encoder"), encoder)


def test_a_shorter_clip_is_the_beginning_of_a_longer_one(encoders):
    rng = np.random.default_rng(0)
    scenes = [random_scene(rng) for _ in range(2)]
    long, short = (encode(encoders, scenes, 64, frames, rng) for frames in (17, 9))
    cut = long.batch(np.arange(2), SHAPE)
    assert cut.video.shape == short.video.shape and cut.audio.shape == short.audio.shape
    assert mx.allclose(cut.video, short.video, atol=2e-3)
    assert mx.allclose(cut.audio, short.audio, atol=2e-3)


@pytest.mark.parametrize(
    "unseen, parts, pair",
    [
        (False, {"spin": 3 / 13, "circle": 2 / 13, "bounce": 2 / 13, "rise": 1 / 13}, 0.345),
        (True, {"spin": 1 / 9, "circle": 1 / 9, "bounce": 1 / 9, "rise": 1 / 9}, 0.2),
    ],
)  # fmt: skip
def test_hard_scenes_are_frequent_in_training_only(unseen, parts, pair):
    scenes = latents.draw_scenes(np.random.default_rng(0), 1500, unseen)
    for motion, part in parts.items():
        those = [each.actors[0].motion == motion for each in scenes]
        assert np.mean(those) == pytest.approx(part, abs=0.025)
    pairs = [len(each.actors) == 2 for each in scenes]
    assert np.mean(pairs) == pytest.approx(pair, abs=0.04)
    assert {held_out(*each.actors[0][:3]) for each in scenes} == {unseen}


def test_shards_are_written_once_and_read_together(encoders, small, monkeypatch):
    monkeypatch.setattr(latents, "SHARD", 4)
    written = dict((file.name, n) for n, file in make(encoders, 6, 64, 9))
    assert written == {
        "latents-64-unseen.safetensors": 1,
        "latents-64-0001.safetensors": 4,
        "latents-64-0002.safetensors": 2,
    }
    assert not list(make(encoders, 6, 64, 9))
    both, alone = read(64), sorted(small.glob("*"))
    for file in alone:
        file.unlink()
    shares = [[n for n, _ in make(encoders, 6, 64, 9, (i, 2))] for i in range(2)]
    assert shares == [[1, 2], [4]] and sorted(small.glob("*")) == alone
    assert mx.array_equal(read(64).video, both.video)
    assert both.video.shape == (6, 8, 128) and both.ids.shape == (
        6,
        latents.TOLD,
        TEXT_TOKENS,
    )
    assert len(np.unique(np.array(both.video[:, 0, 0]))) == 6
    assert read(64, latents.UNSEEN).video.shape[0] == 1
    with pytest.raises(FileNotFoundError, match="python -m tiny.latents --size 128"):
        read(128)


@pytest.mark.thorough
def test_a_shard_that_is_being_written_is_not_read(encoders, small, monkeypatch):
    list(make(encoders, 2, 64, 9))
    seen, save = [], mx.save_safetensors

    def half(path, arrays):
        save(path, arrays)
        seen.append(len(read(64).ids))

    monkeypatch.setattr(latents, "SHARD", 2)
    monkeypatch.setattr(mx, "save_safetensors", half)
    list(make(encoders, 4, 64, 9))
    assert seen == [2]


def test_only_the_scenes_to_measure_on_are_held_out(encoders, small, monkeypatch):
    seen = []
    monkeypatch.setattr(latents, "SHARD", 8)
    monkeypatch.setattr(
        latents,
        "encode",
        lambda e, scenes, *_: seen.append(scenes)
        or Latents(*[mx.zeros(1)] * 2, np.zeros(1)),
    )
    list(make(encoders, 8, 64, 9))
    held = [
        [held_out(a.thing, a.colour, a.motion) for a in (s.actors[0] for s in scenes)]
        for scenes in seen
    ]
    assert [set(row) for row in held] == [{True}, {False}]


# ---- what goes in is what inference gives


def test_features_are_the_encoders(encoder):
    ids, _ = encoder.tokenizer.tokenize([*SENTENCES, ""], TEXT_TOKENS)
    ours, theirs = features(encoder, np.array(ids, np.int16)), encoder.features(
        [*SENTENCES, ""], TEXT_TOKENS
    )
    assert mx.array_equal(ours.mask, theirs.mask)
    tokens = theirs.hidden_states.shape[2]
    shown = (theirs.mask[:, -tokens:] > 0)[..., None]
    off = ours.hidden_states[:, :, -tokens:] - theirs.hidden_states
    # Padding moves all positions, which RoPE's float32 angles feel.
    assert mx.abs(off * shown).max() < 1e-5 * mx.abs(theirs.hidden_states).max()
    assert np.array_equal(empty(), np.array(ids)[2])


@pytest.mark.parametrize("pinned", [False, True])
def test_velocity_is_what_the_sampler_hears(denoiser, encoder, pinned):
    sigma = 0.7
    texts = encoder.features(SENTENCES[:1], TEXT_TOKENS)
    image = VideoConditionByLatentIndex(mx.random.normal((1, 128, 1, 2, 2)))
    given = [AV([image])] if pinned else []
    states = initial_states(SHAPE, model.GEOMETRY, AV(), given, audio=True)
    states = noised(states, sigma, mx.random.key(1))
    context = embed_prompts(denoiser.connectors, texts).positive
    x0 = X0Model(denoiser.transformer)(states, context, sigma)
    x = states.map(lambda state: state.latent)
    ours = denoiser.velocity(
        x, denoiser.context(texts, x.present), mx.array([sigma]), SHAPE, pinned
    )
    expected = states.map(lambda s, v: s.latent - s.denoise_mask * sigma * v, ours)
    for a, b in zip(x0.values, expected.values):
        assert mx.allclose(a, b, atol=1e-5)


def test_sigmas_cover_the_schedules():
    sigmas = draw_sigmas(np.random.default_rng(0), 4000)
    assert 0 < sigmas.min() < 0.05 and sigmas.max() <= 1
    dev = np.array(ltx2_scheduler(40))[:-1]
    for low, high in zip(dev[:0:-4], dev[-5::-4]):
        assert ((sigmas >= low) & (sigmas <= high)).mean() > 0.02


# ---- where training begins


def test_training_begins_where_it_was_left(tmp_path, monkeypatch):
    for module in (model, train_transformer):
        monkeypatch.setattr(module, "WORK", tmp_path)
    first = train_transformer.begin()  # there is nothing yet
    first.transformer.video.proj_out.bias = first.transformer.video.proj_out.bias + 3
    store("transformer-dev", first.transformer)
    store("connectors", first.connectors)
    again = train_transformer.begin()
    assert mx.array_equal(again.transformer.video.proj_out.bias, first.transformer.video.proj_out.bias)  # fmt: skip
    assert mx.array_equal(
        again.connectors.projection.aggregate_embed.weight,
        first.connectors.projection.aggregate_embed.weight,
    )


def test_a_new_denoiser_predicts_its_input(encoder):
    """Up to the random modulation of the last norm, which is small."""
    denoiser = new_denoiser()
    texts = encoder.features(SENTENCES, TEXT_TOKENS)
    noise = AV(mx.random.normal((2, 8, 128)), mx.random.normal((2, 9, 128)))
    context = denoiser.context(texts, noise.present)
    v = denoiser.velocity(noise, context, mx.ones(2), SHAPE, False)
    for x, v in zip(noise.values, v.values):
        assert mx.mean(mx.square(v - x)) < 0.1


def test_every_gate_of_a_block_is_open_and_nothing_passes(encoder):
    block = new_denoiser().transformer.transformer_blocks[0]
    assert block.video.scale_shift_table[:, 0].tolist() == [0, 0, 1, 0, 0, 1]
    assert block.audio.cross_scale_shift_table[:, 0].tolist() == [0, 0, 0, 0, 1]
    silent = [
        block.video.attn2.to_out,
        block.video.cross_attn.to_out,
        block.audio.ff.proj_out,
    ]
    assert not any(mx.any(layer.weight).item() for layer in silent)


# ---- the loss


def test_the_loss_leaves_out_what_is_given(encoder, clips):
    """A model that says nothing has the error of noise - x0; at the given tokens it has none."""
    denoiser, rows = new_denoiser(), np.arange(2)
    for last in (s.proj_out for s in denoiser.transformer.streams.values):
        last.weight = mx.zeros_like(last.weight)
    x0 = clips.batch(rows, SHAPE)
    batch = Batch(
        x0, features(encoder, clips.ids[rows, 0]), mx.array([0.5, 0.9]), SHAPE
    )
    noise = normal(x0, mx.random.key(3))
    wrong = x0.map(lambda x0, noise: mx.square(noise - x0), noise)
    audio = AUDIO_WEIGHT * wrong.audio.mean().item()
    free = velocity_loss(denoiser, lesson(batch, mx.random.key(3))).item()
    assert free == pytest.approx(wrong.video.mean().item() + audio, rel=1e-5)
    pinned = lesson(batch._replace(pinned=True), mx.random.key(3))
    given = velocity_loss(denoiser, pinned).item()
    assert given == pytest.approx(wrong.video[:, 4:].mean().item() + audio, rel=1e-5)


def test_batches_are_of_as_many_tokens_and_of_every_kind(encoder, clips, monkeypatch):
    monkeypatch.setattr(train_transformer, "LARGE", 128)
    large = Latents(mx.zeros((4, 48, 128)), clips.audio[:4], clips.ids[:4])
    sets = {64: clips, 128: large}
    batches = [draw_batch(step, sets, encoder, 12) for step in range(60)]
    kinds = {(b.shape.height, len(b.sigma)) for b in batches}
    assert kinds == {
        (64, 28),
        (128, 7),
    }  # of 12 and 48 tokens; 12 clips of 49 frames would have 336
    assert {b.x0.video.shape[1:] for b in batches} == {(12, 128), (48, 128)}
    assert {b.pinned for b in batches} == {True, False}
    assert {b.x0.audio is None for b in batches} == {True, False}
    untold = [(np.array(b.features.mask).sum(axis=1) == 1).mean() for b in batches]
    assert 0.02 < np.mean(untold) < 0.25


def test_most_clips_are_of_the_usual_length(clips):
    long = Latents(mx.zeros((1, 13 * 4, 128)), clips.audio[:1], clips.ids[:1])
    rng = np.random.default_rng(0)
    frames = [draw_shape(rng, {64: long}, 0).frames for _ in range(300)]
    assert set(frames) == set(range(25, 98, 8))
    assert 0.5 < frames.count(49) / 300 < 0.8


def test_the_network_computes_in_the_dtype_of_its_weights(denoiser, encoder, clips):
    denoiser.set_dtype(mx.bfloat16)
    batch = draw_batch(0, {64: clips}, encoder, 1)
    context = denoiser.context(batch.features, batch.x0.present)
    v = denoiser.velocity(batch.x0, context, batch.sigma, batch.shape, True)
    assert {x.dtype for x in (*v.values, *context.values)} == {mx.bfloat16}
    loss = velocity_loss(denoiser, lesson(batch, mx.random.key(0)))
    assert loss.dtype == mx.float32 and mx.isfinite(loss)


@pytest.mark.thorough  # that it descends is held by the slope and the vector below
def test_training_makes_the_loss_fall_and_is_read_back(encoder, clips):
    denoiser = new_denoiser()
    plan = Plan("transformer", steps=30, learning_rate=3e-3, warmup=1, average=0.0)

    def draw(step):
        batch = draw_batch(step, {64: clips}, encoder, 4)
        return (lesson(batch, mx.random.key(step)),)

    before = measure(denoiser, encoder, clips, 64)
    train(denoiser, Slope(denoiser), plan, draw=draw)
    store("transformer-dev", denoiser.transformer)
    store("connectors", denoiser.connectors)
    again = Denoiser(load("transformer-dev"), load("connectors"))
    after = measure(again, encoder, clips, 64)
    for level in (0.7, 0.9, 1.0):
        assert after[level].video < 0.8 * before[level].video
        assert after[level].audio < 0.8 * before[level].audio


@pytest.mark.thorough
def test_the_slope_in_pieces_is_the_gradient(encoder, clips, monkeypatch):
    """Of every weight, for clips with sound and without, with a first frame that is given and without."""
    monkeypatch.setitem(CONFIGS, "transformer", {**TRANSFORMER, "num_layers": 2})
    denoiser = Denoiser(fresh("transformer"), new_denoiser().connectors)
    weights, slope = denoiser.trainable_parameters(), Slope(denoiser)
    whole = training.slope_of(denoiser, lambda lesson: velocity_loss(denoiser, lesson))
    rows, sigma = np.arange(2), mx.array([0.5, 0.9])
    x0, told = clips.batch(rows, SHAPE), features(encoder, clips.ids[rows, 0])
    for pinned, x0 in ((True, x0), (True, AV(x0.video)), (False, x0)):
        drawn = lesson(Batch(x0, told, sigma, SHAPE, pinned), mx.random.key(3))
        (value, wanted), (got, slopes) = whole(weights, drawn), slope(weights, drawn)
        denoiser.update(weights)
        assert got.item() == pytest.approx(value.item(), rel=1e-6)
        slopes = dict(tree_flatten(slopes))
        assert slopes.keys() == dict(tree_flatten(weights)).keys()
        for name, g in tree_flatten(wanted):
            assert mx.allclose(slopes[name], g, rtol=1e-4, atol=1e-6), name
    assert any(mx.abs(g).max() > 1e-3 for g in slopes.values())


@pytest.mark.parametrize("optimizer", (optim.AdamW, Muon))
def test_a_layout_holds_every_weight(denoiser, optimizer):
    tree = denoiser.trainable_parameters()
    plan = Plan("x", 1, optimizer=optimizer, ends=train_transformer.ENDS)
    layout = training.Layout(tree, plan)
    packed = layout.pack(tree)
    unpacked = dict(tree_flatten(layout.unpack(packed)))
    assert unpacked.keys() == dict(tree_flatten(tree)).keys()
    for name, value in tree_flatten(tree):
        assert mx.array_equal(unpacked[name], value), name
    if optimizer is Muon:
        assert packed["256 x 1024"].shape == (1, 256, 1024)
        matrices = sum(x.size for name, x in packed.items() if name != "vector")
        assert set(train_transformer.ENDS) < set(layout.groups["vector"])
        assert matrices > 0.9 * sum(x.size for x in unpacked.values())
    else:
        assert [*packed] == ["vector"]


def test_a_vector_descends_as_its_arrays_do(small):
    mx.random.seed(0)
    layer, x = nn.Linear(8, 4), mx.random.normal((5, 8))
    error = lambda *_: mx.mean(mx.square(layer(x) - 1))
    plan = Plan("adamw", 5, learning_rate=1e-2, clip=1e9, average=0.0)
    adamw = optim.AdamW(1e-2, betas=[0.9, 0.99], weight_decay=0.0)
    start = layer.parameters()
    for step in range(5):
        adamw.learning_rate = plan.rate(step, plan.progress(step, 0.0))
        adamw.update(layer, nn.value_and_grad(layer, error)(layer)[1])
    wanted = layer.parameters()
    layer.update(start)
    train(layer, training.slope_of(layer, error), plan)
    for name in ("weight", "bias"):
        assert mx.allclose(layer[name], wanted[name], atol=1e-6)


def test_a_file_of_another_optimizer_is_not_gone_on_from(small):
    layer = nn.Linear(4, 4)
    slope = training.slope_of(layer, lambda _: mx.square(layer.weight).sum())
    train(layer, slope, Plan("one", steps=1))
    with pytest.raises(ValueError, match="one.training.safetensors is of another"):
        train(layer, slope, Plan("one", steps=2, optimizer=Muon))


def test_what_a_text_encoder_has_learned_since_is_read(encoder, clips):
    before = features(encoder, clips.ids[:2, 0]).hidden_states
    scale = encoder.model.model.norm.weight
    encoder.model.model.norm.weight = 2 * scale + 1
    after = features(encoder, clips.ids[:2, 0]).hidden_states
    encoder.model.model.norm.weight = scale
    assert mx.abs(after[-1] - before[-1]).max() > 0.1


@pytest.mark.parametrize("size, step", ((0.5, 0.5), (1000.0, 1.0)))
def test_a_gradient_is_no_longer_than_the_clip(size, step, small):
    module = nn.Linear(1, 1, bias=False)
    before = module.weight.item()
    sgd = lambda rate, **_: optim.SGD(rate)
    plan = Plan("clip", steps=1, learning_rate=0.1, warmup=1, optimizer=sgd, clip=1.0)
    slope = training.slope_of(module, lambda _: size * module.weight.sum())
    train(module, slope, plan)
    # The average holds a tenth of what was there before.
    assert before - module.weight.item() == pytest.approx(0.9 * 0.1 * step, rel=1e-4)


# ---- distillation


def test_a_teacher_of_one_unguided_step_has_nothing_to_teach(
    denoiser, encoder, clips, monkeypatch
):
    monkeypatch.setattr(distil, "SUBSTEPS", (1,) * 8)
    start = draw_start(0, {64: clips}, 2)
    lesson = teach(Guide(denoiser, 1.0), encoder, start)
    assert lesson.sigma.tolist() == pytest.approx(np.repeat(STAGE_1_SIGMAS[:-1], 4))
    assert velocity_loss(denoiser, lesson).item() < 1e-6
    ends = lesson.x.map(
        lambda x, v: x[-4:] - STAGE_1_SIGMAS[-2] * v[-4:], lesson.velocity
    )
    for a, b in zip(walk(denoiser, encoder, start).values, ends.values):
        assert mx.allclose(a, b, atol=1e-4)


def test_guidance_leads_away_from_the_empty_text(encoder, denoiser, clips, monkeypatch):
    monkeypatch.setattr(distil, "SUBSTEPS", (1,) * 8)
    x0, ids = clips.batch(np.arange(2), SHAPE), clips.ids[:2, 0]
    lesson = teach(Guide(denoiser, 3.0), encoder, Start(x0, ids, (0.9, 0.0), SHAPE))
    sigma = mx.full((2,), 0.9)
    told, untold = (
        denoiser.velocity(x0, context, sigma, SHAPE, False)
        for context in contexts(denoiser, encoder, Start(x0, ids, (), SHAPE))
    )
    assert mx.abs(told.video - untold.video).max() > 1e-3
    for got, a, b in zip(lesson.velocity.values, told.values, untold.values):
        assert mx.allclose(got, b + 3 * (a - b), atol=1e-4)


def test_a_guided_teacher_goes_further_and_leaves_what_is_given(
    denoiser, encoder, clips
):
    x0, ids = clips.batch(np.arange(2), SHAPE), clips.ids[:2, 0]
    start = Start(x0, ids, (0.9, 0.4, 0.0), SHAPE, pinned=True)
    lesson = teach(Guide(denoiser, 3.0), encoder, start)
    assert mx.array_equal(lesson.velocity.video[:, :4], mx.zeros((4, 4, 128)))
    assert velocity_loss(denoiser, lesson).item() > 1e-4


def test_a_student_is_taught_from_where_it_gets_itself(denoiser, encoder, clips):
    """One that steps as the teacher does unguided: its points are those of a walk, each with the teacher's way on."""
    start, guide = draw_start(0, {64: clips}, 1), Guide(denoiser, 3.0)
    count, student = len(start.ids), Student(denoiser)
    own = teach(guide, encoder, start, student)
    last = own.x.map(lambda x: x[-count:])
    told, untold = contexts(denoiser, encoder, start)
    end = student.advance(last, told, start.sigmas[-2], start.sigmas[-1], start)
    for a, b in zip(end.values, walk(denoiser, encoder, start).values):
        assert mx.allclose(a, b, atol=1e-4)
    first = AV(*(x[:count] for x in own.x.values))
    again = teach(guide, encoder, start)
    assert mx.array_equal(first.video, again.x.video[:count])
    assert mx.array_equal(own.velocity.video[:count], again.velocity.video[:count])
    assert mx.abs(own.x.video - again.x.video).max() > 1e-2


def test_a_student_leaves_what_is_given(denoiser, encoder, clips):
    x0, ids = clips.batch(np.arange(2), SHAPE), clips.ids[:2, 0]
    start = Start(x0, ids, (0.9, 0.4, 0.0), SHAPE, pinned=True)
    own = teach(Guide(denoiser, 3.0), encoder, start, Student(denoiser))
    assert mx.array_equal(own.x.video[2:, :4], x0.video[:, :4])
    assert mx.abs(own.x.video[2:, 4:] - x0.video[:, 4:]).max() > 1e-3


@pytest.mark.thorough
def test_distilling_makes_the_loss_fall_by_a_low_rank_change(encoder, clips):
    teacher = Denoiser(fresh("transformer"), new_denoiser().connectors)
    store("transformer-dev", teacher.transformer)
    change = Change(teacher.transformer, rank=4)
    start = draw_start(0, {64: clips}, 2)
    lesson = teach(Guide(teacher, 3.0), encoder, start)
    student, losses = Student(teacher), []

    def watched(weights, lesson):
        value, gradients = student.slope(weights, lesson)
        losses.append(value)
        return value, gradients

    plan = Plan("distil", steps=12, learning_rate=3e-3, warmup=1, average=0.0)
    train(change, watched, plan, draw=lambda step: (lesson,))
    assert losses[-1].item() < 0.8 * losses[0].item()
    keep(change)
    before, after = (
        load(f"transformer-{v}").video.proj_out.weight for v in ("dev", "distilled")
    )
    assert np.linalg.matrix_rank(np.array(after - before), tol=1e-5) == 4


def test_the_slope_of_a_change_is_its_gradient(denoiser, encoder, clips):
    change = Change(denoiser.transformer, rank=2)
    change.up = {p: mx.random.normal(up.shape) * 0.01 for p, up in change.up.items()}
    student = Denoiser(fresh("transformer"), denoiser.connectors)
    student.transformer.update(denoiser.transformer.parameters())
    start = draw_start(0, {64: clips}, 1)
    lesson = teach(Guide(denoiser, 3.0), encoder, start)

    def loss(lesson):
        change.apply_to(student.transformer, denoiser.transformer)
        return velocity_loss(student, lesson)

    weights = change.trainable_parameters()
    _, wanted = training.slope_of(change, loss)(weights, lesson)
    _, got = Student(denoiser).slope(weights, lesson)
    got = dict(tree_flatten(got))
    for name, g in tree_flatten(wanted):
        assert mx.allclose(got[name], g, rtol=1e-3, atol=1e-6), name


def test_a_student_changes_in_its_own_dtype():
    teacher, student = fresh("transformer"), fresh("transformer")
    student.set_dtype(mx.bfloat16)
    change = Change(teacher, rank=1)
    change.up = {path: mx.ones_like(up) for path, up in change.up.items()}
    change.apply_to(student, teacher)
    down = change.down["video/proj_out/weight"]
    wanted = (teacher.video.proj_out.weight + down).astype(mx.bfloat16)
    assert student.video.proj_out.weight.dtype == mx.bfloat16
    assert mx.array_equal(student.video.proj_out.weight, wanted)


# ---- the whole


def test_a_clip_comes_out_of_the_public_pipeline(encoder, small, tmp_path_factory):
    parts = {name: store(name, fresh(name)) for name in CONFIGS if name != "connectors"}
    parts["connectors"] = store("connectors", new_denoiser().connectors)
    text.store_encoder(encoder.model, small / "text_encoder")
    sources = {name: Source.of(folder) for name, folder in parts.items()}
    sources["text_encoder"] = Source.of(small / "text_encoder")
    pipeline = Pipeline(
        Components(sources, Residency(mx.float32)), distilled(), health=False
    )
    clip = pipeline(Request(SENTENCES[0], SHAPE, negative_prompt="", audio=True))
    frames = list(clip.frames)
    assert len(frames) == 9 and frames[0].shape == (64, 64, 3)
    assert clip.audio.samples.shape[1] / clip.audio.sample_rate == pytest.approx(
        9 / 24, abs=0.05
    )
