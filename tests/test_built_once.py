"""One run builds each part once, reads each picture once, and keeps to the memory that the machine can give."""

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest
from PIL import Image

from mlx_video import cli, pictures, plan
from mlx_video.models.ltx.loading.parts import NEEDED, Network
from mlx_video.models.ltx.text_encoder import GemmaTextEncoder
from tests.checkpoints import tiny_folder

WORDS = "-p cat -W 64 -H 64 -n 9 -o x.mp4 --model".split()


@pytest.fixture
def model(tmp_path, monkeypatch) -> str:
    monkeypatch.chdir(tmp_path)
    return str(tiny_folder(tmp_path / "model"))


def counted_builds(monkeypatch) -> Counter:
    counts = Counter()
    for owner in (Network, GemmaTextEncoder):
        build = owner.from_source.__func__

        def count(cls, *args, build=build, **options):
            counts[cls.__name__] += 1
            return build(cls, *args, **options)

        monkeypatch.setattr(owner, "from_source", classmethod(count))
    return counts


@pytest.mark.slow
@pytest.mark.parametrize(
    "sound", [True, pytest.param(False, marks=pytest.mark.thorough)]
)
def test_a_run_builds_each_part_once_and_reads_each_picture_once(
    sound, model, monkeypatch
):
    Image.fromarray(np.full((64, 64, 3), 99, np.uint8)).save("picture.png")
    builds = counted_builds(monkeypatch)
    read, seen = pictures.read_picture, []
    monkeypatch.setattr(pictures, "read_picture", lambda p: seen.append(p) or read(p))
    words = [*WORDS, model, "--image", "picture.png", "--no-health-check"]
    assert cli.main(["generate", *words, *([] if sound else ["--no-audio"])]) == 0
    parts = set(NEEDED) - {"audio_encoder"}
    parts -= set() if sound else {"audio_decoder", "vocoder"}
    assert len(builds) == len(parts) and set(builds.values()) == {1}
    assert len(seen) == 1


@pytest.mark.slow
def test_freed_memory_is_kept_for_reuse_within_the_plan(model, monkeypatch):
    """What no phase takes, and no more than the usual: else MLX keeps all that was ever freed."""
    set_to, limit = [], mx.set_cache_limit
    monkeypatch.setattr(mx, "set_cache_limit", lambda n: set_to.append(n) or limit(n))
    monkeypatch.setattr(plan, "machine_bytes", lambda: 500_000_000)
    usual = limit(77_777_777)
    assert cli.main(["generate", *WORDS, model, "--no-audio"]) == 0
    assert 0 < set_to[0] < 0.95 * 500_000_000
    assert set_to[0] <= 2**25  # on a CPU more was seen to gain no time
    assert limit(usual) == 77_777_777  # as it was before the run


@pytest.mark.slow
def test_a_plan_leaves_some_of_the_machine_to_the_system(model, monkeypatch, capsys):
    words = ["plan", *WORDS, model]
    assert cli.main(words) == 0
    found = capsys.readouterr().out.splitlines()[-1]
    largest = float(found.split("at most ")[1].split(" GB")[0])
    monkeypatch.setattr(plan, "machine_bytes", lambda: 100 * plan.GB)
    assert cli.main(words) == 0
    assert "of 95.00 GB" in capsys.readouterr().out
    monkeypatch.setattr(plan, "machine_bytes", lambda: largest * plan.GB)
    assert cli.main(words) == 2
    assert "the limit is" in capsys.readouterr().err
