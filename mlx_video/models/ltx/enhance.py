"""Prompt enhancement: how to ask a text encoder's Gemma for a description of the kind that LTX-2 was trained on."""

import logging
from typing import TYPE_CHECKING, Callable

from mlx_video.errors import UserError

if TYPE_CHECKING:  # it imports this module
    from mlx_video.models.ltx.text_encoder import GemmaTextEncoder

log = logging.getLogger(__name__)

MAX_TOKENS = 512
TEMPERATURE = 0.7

STYLE = """\
Write one flowing paragraph of plain English in the present tense, at most 200 words, without headings, lists or
line breaks. Tell events in the order in which they happen, joined by words such as "then", "while" and "as". Give
each person, animal or thing a few visible traits (age, clothes, colour, material) and call it by the same words
throughout. Say what moves and how: small, concrete, visible actions, and feelings only as faces and bodies show them.
Weave in where the camera stands and how it moves, the kind of shot, the light, the colours and the place. Describe the
sound as it occurs: voices, noises, weather, music, or silence; put spoken words in quotation marks and name who says
them and in which tone. Use only what a camera and a microphone can record.

Keep everything the user asked for: subjects, actions, order, spoken words, style, numbers and names. Add detail where
there is none, but no new characters, no change of scene and no written text unless the user wants them. A few seconds
pass, so let little happen, and let it happen fully. If the user names a style, begin with it.

Answer with the paragraph alone: no title, no introduction, no remark about these instructions."""

FROM_TEXT = f"""\
You write descriptions for a model that makes short videos with sound. The user sends you an idea; you answer with the
description of the finished video.

{STYLE}"""

FROM_IMAGE = f"""\
You write descriptions for a model that makes short videos with sound. The video begins with a picture that the user
has and you cannot see. The user tells you what shall happen; you answer with the description of what changes from that
first moment on.

Take what the user says of the picture as certain and contradict none of it. Do not invent looks, clothes, colours,
light or places that the picture might not show; speak of "the woman" or "the street" rather than of details you would
have to guess. Spend your words on motion, on the camera and on sound, where detail is free. Begin with the first
movement, and do not introduce the still picture.

{STYLE}"""

PLAIN = str.maketrans(
    {"“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "―": "-"}
)


def enhance_t2v(
    encoder: "GemmaTextEncoder",
    prompt: str,
    *,
    max_tokens: int = MAX_TOKENS,
    temperature: float = TEMPERATURE,
    seed: int = 10,
    system_prompt: str | None = None,
    on_text: Callable[[str], None] | None = None,
    verbose: bool = False,
) -> str:
    """A fuller prompt for a video made from text alone.

    ``system_prompt`` replaces this module's instructions. ``on_text`` is called with each piece as it is written;
    ``verbose`` logs the prompt. The same seed gives the same text. Raises ``UserError`` if the model writes no word.
    """
    pieces = encoder.generate(
        system_prompt or FROM_TEXT,
        f"The idea: {prompt.strip()}",
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )
    text = ""
    for piece in pieces:
        text += piece
        if on_text is not None:
            on_text(piece)
    if not (fuller := clean_prompt(text)):
        raise UserError(
            f"Gemma wrote no words for the enhanced prompt, only {text!r}. Try another seed, or do without enhancement."
        )
    if verbose:
        log.info("The fuller prompt: %s", fuller)
    return fuller


def enhance_i2v(encoder: "GemmaTextEncoder", prompt: str, **options) -> str:
    """A fuller prompt for a video that begins with an image; ``options`` are those of ``enhance_t2v``.

    The image itself is not used, because mlx-lm lacks Gemma's vision tower, to which the official code shows it.
    """
    options["system_prompt"] = options.get("system_prompt") or FROM_IMAGE
    return enhance_t2v(encoder, prompt, **options)


def clean_prompt(text: str) -> str:
    """``text`` as one line with straight quotes and plain hyphens, from its first letter on.

    >>> clean_prompt('**“A cat” — it’s grey.\\n')
    'A cat" - it\\'s grey.'
    """
    text = " ".join(text.translate(PLAIN).split())
    start = next((i for i, c in enumerate(text) if c.isalpha()), len(text))
    return text[start:]
