"""Enhancement streams, repeats itself for a seed, sends the user's words, and cleans what comes back."""

import mlx.core as mx
import pytest

from mlx_video.models.ltx import enhance
from mlx_video.models.ltx.enhance import clean_prompt, enhance_i2v, enhance_t2v
from mlx_video.models.ltx.text_encoder import GemmaTextEncoder
from tests.tiny_tokenizer import make_text_encoder_folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> GemmaTextEncoder:
    folder = make_text_encoder_folder(
        tmp_path_factory.mktemp("text_encoder"), longest=131072
    )
    return GemmaTextEncoder.load(folder, dtype=mx.float32)


class Scripted:
    """Stands in for Gemma: remembers what it was asked and answers from a script."""

    def __init__(self, *pieces: str):
        self.pieces = pieces

    def generate(self, instructions, request, **sampling):
        self.instructions, self.request, self.sampling = instructions, request, sampling
        yield from self.pieces


@pytest.mark.slow
@pytest.mark.parametrize(
    "enhance_prompt",
    [enhance_t2v, pytest.param(enhance_i2v, marks=pytest.mark.thorough)],
)
def test_gemma_writes_piece_by_piece(encoder, enhance_prompt):
    pieces = []
    text = enhance_prompt(encoder, "a cat", max_tokens=8, on_text=pieces.append)
    assert len(pieces) > 5
    assert text == clean_prompt("".join(pieces))


@pytest.mark.thorough
def test_seed_decides_the_text(encoder):
    def write(seed):
        return enhance_t2v(encoder, "a cat", max_tokens=6, seed=seed)

    assert write(1) == write(1) != write(2)


def test_modes_differ_only_in_their_instructions():
    text, image = Scripted("A cat."), Scripted("A cat.")
    enhance_t2v(text, " a red fox \n", max_tokens=9, temperature=0.1, seed=5)
    enhance_i2v(image, " a red fox \n", max_tokens=9, temperature=0.1, seed=5)
    assert text.request == image.request and text.request.endswith(": a red fox")
    assert text.sampling == {"max_tokens": 9, "temperature": 0.1, "seed": 5}
    assert text.sampling == image.sampling
    assert "cannot see" in image.instructions and "cannot see" not in text.instructions
    assert enhance.STYLE in text.instructions and enhance.STYLE in image.instructions


def test_nothing_written_is_an_error():
    with pytest.raises(ValueError, match="no words .* another seed"):
        enhance_t2v(Scripted("… ", "123"), "a cat")


@pytest.mark.parametrize(
    "raw, clean",
    [
        ("A cat “sings” ‘low’.", "A cat \"sings\" 'low'."),
        ("Rain—cold – falls", "Rain-cold - falls"),
        ("\n\n1. **A cat** runs", "A cat** runs"),
        ("A cat\n\nruns  far. ", "A cat runs far."),
        ("Élan", "Élan"),
        ("… 42!", ""),
    ],
)
def test_cleaning(raw, clean):
    assert clean_prompt(raw) == clean
    assert clean_prompt(clean) == clean
