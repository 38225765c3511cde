"""What a start leaves unimported: `import mlx_video` and `mlx-video --help` wait for nothing that they do not need."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

import mlx_video
from mlx_video import cli

ROOT = Path(__file__).parent.parent
CODECS = {"av", "PIL"}
LANGUAGE = {"mlx_lm", "transformers", "tokenizers"}
NETWORK = {"huggingface_hub.errors"}  # an HTTP client comes with it
ARRAYS = {"mlx.core", "numpy"}


def imported(code: str) -> set[str]:
    """Every module there is after a fresh Python ran ``code``."""
    code = f"import sys\ntry:\n    {code}\nfinally:\n    print(*sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_the_package_alone_imports_no_library():
    modules = imported(
        "import time; start = time.process_time(); import mlx_video\n"
        "    assert time.process_time() - start < 0.5"  # 0.05 on an idle machine
    )
    assert "mlx_video" in modules
    assert not modules & (
        ARRAYS | CODECS | LANGUAGE | NETWORK | {"huggingface_hub", "tqdm"}
    )


def test_help_imports_no_codec_language_model_or_network():
    """Of no door, one after the other."""
    doors = {"generate", "generate_dev", "generate_av", "convert"}
    asked = [
        ("cli", ["generate", "--help"]),
        *((door, ["--help"]) for door in sorted(doors | {"cli"})),
    ]
    code = f"import contextlib, importlib\n    for door, words in {asked}:\n"
    code += "        with contextlib.suppress(SystemExit):\n"
    code += "            importlib.import_module(f'mlx_video.{door}').main(words)"
    modules = imported(code)
    assert {f"mlx_video.{door}" for door, _ in asked} <= modules
    assert not modules & (CODECS | LANGUAGE | NETWORK)


def test_the_collector_leaves_what_is_imported_alone(capsys):
    cli._commands.cache_clear()
    gc.unfreeze()
    assert cli.main(["completion", "bash"]) == 0
    assert gc.isenabled() and gc.get_freeze_count() > 10_000


@pytest.mark.slow
def test_encoding_a_prompt_imports_no_transformers():
    """mlx-lm brings it, more than a second of every run, for those who let Gemma write."""
    modules = imported("import mlx_video.models.ltx.text_encoder")
    assert {"mlx_video.models.ltx.gemma", "tokenizers"} <= modules
    assert not modules & {"transformers", "mlx_lm", "mlx_lm.models.gemma3_text"}


@pytest.mark.slow
def test_mlx_lm_is_whole_for_others_who_import_it():
    code = "import mlx_video.models.ltx.gemma as ours, mlx_lm.models.gemma3_text as theirs, mlx_lm"
    code += "; assert mlx_lm.stream_generate and mlx_lm.models.gemma3_text is theirs"
    assert "transformers" in imported(code)


def test_ctrl_c_while_the_backend_is_found_is_one_word():
    code = "import sys; sys.argv = ['mlx-video']; import importlib.abc as a"
    code += """
class Find(a.MetaPathFinder):
    def find_spec(self, name, *_):
        if name == 'mlx_video.backend':
            raise KeyboardInterrupt
sys.meta_path.insert(0, Find())
import mlx_video
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "stopped\n"


@pytest.mark.parametrize(
    "program, module, ours",
    [
        ("-m", "mlx_video.generate", True),
        ("-m", "mlx_video", True),
        ("/bin/mlx-video", "", True),
        ("other.py", "mlx_video", False),
        ("-m", "other", False),  # a package that imports ours
    ],
)
def test_a_command_of_ours_is_known_by_how_it_is_started(
    program, module, ours, monkeypatch
):
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", module])
    assert mlx_video._is_command() is ours


def test_ctrl_c_in_a_program_that_imports_ours_keeps_its_traceback():
    code = "import mlx_video; raise KeyboardInterrupt"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode != 0 and done.stderr.startswith("Traceback")
