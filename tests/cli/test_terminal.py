"""What reaches the terminal: harmless words, plain lines, one object of JSON, and an answer to Ctrl-C."""

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlx_video import cli, hub, recipes
from mlx_video.cli import commands, jobs, progress, terminal
from mlx_video.cli.jobs import options_from, output_from
from mlx_video.cli.progress import Progress
from mlx_video.clip_settings import ClipSettings
from mlx_video.errors import UserError
from mlx_video.events import Planned, Saved, Took, Warned, Written
from mlx_video.health import HealthError
from mlx_video.inputs import Image
from mlx_video.models.ltx.checkpoint.files import Files
from mlx_video.output import Output
from mlx_video.pipeline import Request
from mlx_video.plan import Phase, Plan
from mlx_video.record import Job
from mlx_video.types import Step, VideoPixelShape

ROOT = Path(__file__).parents[2]
JOB = Job(
    Request("a ball", VideoPixelShape(9, 64, 128, 24.0), seed=7), recipes.distilled()
)
PHASES = (
    Phase("libraries", 0, 0.0),
    Phase("stage 1", 10**9, 5e8, 30.0),
    Phase("upsample", 10**9, 0.0),
    Phase("stage 2", 10**9, 0.0, 60.0),
    Phase("decode video", 10**8, 0.0, 10.0),
)
PLANNED = Planned(JOB, "x.mp4", Plan(PHASES, 4e9, None))
OUTPUT = Output(Path("x.mp4"))
WRITTEN = Written("x.mp4", "x.json", 2.0, 3 * 10**8)


# Words


@pytest.mark.parametrize(
    "text, shown",
    [
        ("\x1b]0;owned\x07red", "\\x1b]0;owned\\x07red"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("\x9b31m\r\x7f", "\\x9b31m\\r\\x7f"),
        ("\udcff\u2028", "\\udcff\\u2028"),
        ("a\tcat\n\N{CAT FACE} é", "a\tcat\n\N{CAT FACE} é"),
    ],
)
def test_nothing_steers_the_terminal(text, shown, capsys):
    assert terminal.harmless(text) == shown
    terminal.say(text)
    terminal.tell(text)
    assert capsys.readouterr() == (shown + "\n", shown + "\n")


def test_what_files_say_is_harmless_in_errors_and_faults(capsys):
    def bad():
        raise UserError("model \x1b[2J is unknown.")

    def fault():
        raise ValueError(chr(27) + "[2J")

    assert (cli.guarded(bad), cli.guarded(fault)) == (2, 1)
    told = capsys.readouterr().err
    assert "\x1b" not in told and told.count("\\x1b[2J") == 2


def test_results_need_no_reader(monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        terminal.tell("x.mp4")
        terminal.tell("once more")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_a_full_disk_under_stdout_is_a_sentence():
    both = [["info"], ["info", "nowhere", "--json"]]
    code = f"from mlx_video import cli; print([cli.main(words) for words in {both}], file=__import__('sys').stderr)"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    *errors, codes = done.stderr.splitlines()
    assert len(errors) == 2 and all(line.startswith("error: ") for line in errors)
    assert codes == "[2, 2]"


def test_closed_outputs_are_no_failure(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    terminal.tell("x.mp4")
    shown(PLANNED, Step("stage 1", 1, 2), Took("stage 1", 1.0, 1), WRITTEN)


def test_results_are_shown_as_far_as_the_terminal_can(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "ascii"))
    terminal.tell("é.mp4")
    assert raw.getvalue() == b"\\xe9.mp4\n"


# Progress


def shown(*events, **options) -> None:
    progress = Progress(**options)
    for event in events:
        progress.show(event)
    progress.close()


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by a second whenever it is read: once a step."""
    ticks = SimpleNamespace(seconds=1.0, now=0.0)

    def read() -> float:
        ticks.now += ticks.seconds
        return ticks.now

    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=read))
    return ticks


def test_without_a_terminal_there_is_a_line_a_phase_and_a_line_every_tenth(
    clock, capsys
):
    steps = [Step("stage 1", n, 40, 0.5) for n in range(41)]
    events = [PLANNED, *steps, Took("stage 1", 4.0, 10**9), WRITTEN]
    shown(*events)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[:2] == [
        "making x.mp4: 'a ball', 9 frames of 128x64, 0.4 s without sound, seed 7",
        "plan: at most 1.50 GB of 4.00 GB, for stage 1",
    ]
    # 40 s for 30 of 100 units of work: 133 s in all.
    assert lines[2] == "stage 1: 10 %, about 2 min left"
    assert lines[10] == "stage 1: 90 %, about 97 s left"
    assert len(lines) == 2 + 9 + 2
    assert lines[-2:] == ["stage 1: 4.0 s, peak 1.00 GB", "total: 2.0 s, peak 0.30 GB"]


def test_less_than_a_second_is_not_said(clock, capsys):
    clock.seconds = 0.6
    shown(PLANNED, *[Step("decode video", n, 10) for n in range(11)])
    *_, before, last = [s for s in capsys.readouterr().err.splitlines() if "%" in s]
    assert before == "decode video: 80 %, about 1 s left"
    assert last == "decode video: 90 %"


def test_a_file_that_holds_no_sound_is_announced_without_it():
    loud = replace(JOB, request=replace(JOB.request, audio=True))
    for path, sound in {
        "x.mp4": "with",
        "x.gif": "without",
        "x.WEBP": "without",
    }.items():
        line = progress.making_line(PLANNED._replace(job=loud, path=path))
        assert f" {sound} sound, seed 7" in line


def test_what_is_left_is_of_the_whole_run(clock, capsys):
    clock.seconds = 5.0
    shown(PLANNED, *[Step("stage 2", n, 3) for n in range(4)])
    shown(PLANNED, *[Step("decode video", n, 10) for n in range(3)])
    shown(PLANNED, *[Step("encode prompt", n, 2) for n in range(3)])
    said = [line for line in capsys.readouterr().err.splitlines() if "%" in line]
    assert said == [
        "stage 2: 33 %, about 12 s left",  # 10 s of it, and a sixth as much to decode
        "stage 2: 66 %, about 8 s left",
        "decode video: 10 %, about 45 s left",
        "decode video: 20 %, about 40 s left",
        "encode prompt: 50 %",
    ]


def test_what_is_left_of_a_phase_that_was_not_planned_is_its_own(clock, capsys):
    clock.seconds = 5.0
    shown(*[Step("decode video", n, 10) for n in range(2)])
    assert capsys.readouterr().err == "decode video: 10 %, about 45 s left\n"


def test_frames_that_come_in_bursts_do_not_deceive(monkeypatch, capsys):
    """The pace is told from one piece of the clip to the next, and not at all while there is but one."""
    times = [0.0]
    for frame in range(1, 33):  # pieces of 8 frames, each after 9 s, its frames at once
        times.append(times[-1] + (9.0 if frame % 8 == 1 else 0.1))
    ticks = SimpleNamespace(perf_counter=iter(times).__next__)
    monkeypatch.setattr(progress, "time", ticks)
    shown(*[Step("decode video", n, 32) for n in range(33)])
    lines = capsys.readouterr().err.splitlines()
    assert lines[:4] == [
        "decode video: 12 %",
        "decode video: 21 %",
        "decode video: 31 %, about 27 s left",  # 22 frames at 9.7 s for 8
        "decode video: 40 %, about 23 s left",
    ]


def test_a_short_phase_has_one_line(clock, capsys):
    clock.seconds = 0.05
    shown(PLANNED, *[Step("stage 1", n, 40) for n in range(41)])
    assert "%" not in capsys.readouterr().err


def test_quiet_shows_warnings_only(capsys):
    step = Step("stage 1", 1, 2)
    shown(PLANNED, step, "lora", Warned("no room"), WRITTEN, quiet=True)
    assert capsys.readouterr() == ("", "warning: no room\n")


def test_verbose_shows_a_table_and_states(capsys):
    saved, took = Saved("x.state.safetensors", 3), Took("stage 1", 4.0, 10**9)
    shown(Step("stage 1", 1, 2), saved, took, WRITTEN, verbose=True)
    told = capsys.readouterr().err
    assert "state after step 3 saved in x.state" in told
    assert (
        "phase                 seconds  peak GB\nstage 1                   4.0     1.00"
        in told
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_a_bar_with_the_time_left(clock, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    steps = [Step("decode video", n, 9) for n in range(10)]
    shown(PLANNED, *steps, Took("decode video", 1.0, 10**8), WRITTEN)
    assert "decode video" in screen.getvalue() and "9/9" in screen.getvalue()
    assert "left" in screen.getvalue()
    last = screen.getvalue().split("\r")[-1]
    assert last.startswith("decode video      ") and "left" not in last


@pytest.mark.parametrize("term, columns", [("dumb", 80), ("xterm", 0)])
def test_a_terminal_that_cannot_draw_a_bar_has_lines(monkeypatch, term, columns):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "watched", lambda: True)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((80, 24)))
    assert Progress().lively
    monkeypatch.setenv("TERM", term)
    size = os.terminal_size((columns, 0))
    monkeypatch.setattr(os, "get_terminal_size", lambda _: size)
    assert not Progress().lively


def test_a_narrow_terminal_has_the_time_in_place_of_a_bar(clock, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    columns = os.terminal_size((40, 20))
    monkeypatch.setattr(progress.os, "get_terminal_size", lambda _: columns)
    shown(PLANNED, *[Step("load text encoder", n, 400) for n in range(100)])
    drawn = screen.getvalue().splitlines()[-1].split("\r")
    assert re.match(r"load text encoder \d+/400", drawn[-1])
    shown(*[Step("stage 1", n, 40) for n in range(20)])
    assert re.search(r"\rstage 1 19/40, about 21 s left", screen.getvalue())


def test_json_is_one_object(monkeypatch, capsys):
    monkeypatch.setattr(commands, "run_job", lambda *_: iter_events())
    words = ["generate", "-p", "a ball", "--quiet", "--json", "--model", "a/b"]

    def job(settings, files, notify, warn, called):
        notify("Using the demo model.")
        warn("--steps is not used.")
        return JOB

    monkeypatch.setattr(ClipSettings, "job", job)
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    assert err == "warning: --steps is not used.\n"
    found = json.loads(out)
    assert found == {
        "path": "x.mp4",
        "record": "x.json",
        "seconds": 2.0,
        "peak": 3 * 10**8,
        "seed": 7,
    }


@pytest.mark.parametrize(
    "words, code, error",
    [
        (["generate", "-p", "a", "--sede", "3"], 2, "There is no option --sede; did you mean --seed?"),
        (["decode", "no.safetensors"], 2, "There is no file or folder no.safetensors."),
        (["decode", "frozen"], 3, "The clip is frozen."),
        (["decode", "broken"], 1, "broken"),
        (["decode", "stopped"], 130, "stopped"),
    ],
)  # fmt: skip
def test_json_tells_of_an_error_too(words, code, error, here, monkeypatch, capsys):
    ends = {"frozen": HealthError("The clip is frozen."), "broken": RuntimeError("broken"), "stopped": KeyboardInterrupt()}  # fmt: skip
    read = commands.Job.from_record

    def from_record(path):
        if path.name in ends:
            raise ends[path.name]
        return read(path)

    monkeypatch.setattr(commands.Job, "from_record", from_record)
    assert cli.main([*words, "--json"]) == code
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": error} and error in err


def iter_events():
    yield PLANNED
    yield WRITTEN


# Names


def args(*words: str):
    return commands.main_parser().read(["generate", "-p", "a", *words])


def test_a_download_is_said_and_how_far_it_is_unless_only_the_path_is_wanted(capsys):
    plan = hub.DownloadPlan("a/b", ("x",), {"x": hub.Missing(10**10, "0")})
    half = hub.Download("a/b", plan.missing.values(), print)
    half.done, half.tenth = 5 * 10**9, True
    for words, lines in {("--quiet",): 1, (): 2}.items():
        notify = options_from(args(*words)).notify
        notify(plan)
        notify(half)
        said = capsys.readouterr().err.splitlines()
        assert len(said) == lines
        assert said[0] == "a/b: 10.00 GB to download (x 10.00 GB)"
    assert said[1].startswith("a/b: 5.00 of 10.00 GB, ")


@pytest.mark.parametrize(
    "typed, path",
    [
        ([], "a-ball-7.mp4"),
        (["-o", "new/"], "new/a-ball-7.mp4"),
        (["-o", "folder"], "folder/a-ball-7.mp4"),
        (["-o", "new/x.mp4"], "new/x.mp4"),
        (["-o", "~/x.mp4"], "{home}/x.mp4"),
    ],
)
def test_where_a_clip_goes(typed, path, here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    (here / "folder").mkdir()
    output = output_from(args(*typed), JOB)
    assert str(output.path) == path.format(home=here)


@pytest.mark.parametrize("typed", ["", ".mp4", "x.txt", "x" * 300, "~nosuchuser/x.mp4"])
def test_paths_that_are_none_are_refused(typed, here, capsys):
    words = ["generate", "-p", "a", "-o", typed, "-W", "64", "-H", "64", "-n", "9"]
    assert cli.main([*words, "--model", str(here)]) == 2
    assert cli.main(["convert", "--hf-path", typed, "--mlx-path", typed]) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told and all(len(x) < 400 for x in told.splitlines())


@pytest.mark.parametrize("option", ["--model", "--text-encoder", "--upsampler"])
def test_a_file_without_a_name_is_refused(option, capsys):
    assert cli.main(["plan", "-p", "a", option, ""]) == 2
    assert "A path is empty" in capsys.readouterr().err


def test_latents_remember_what_they_were_to_become(here):
    output = Output(Path("a/x.gif"), Path("a/x.wav"), Path("elsewhere/frames"))
    words = output.remembered()
    assert Output.recalled(Path("b/y.latents.safetensors"), words) == Output(
        Path("b/x.gif"), Path("b/x.wav"), Path("b/../elsewhere/frames")
    )
    old = Output.recalled(Path("b/y.latents.safetensors"), {})
    assert old == Output(Path("b/y.mp4"))
    hostile = {"output": "../../x.mp4", "audio": "../../.profile.wav"}
    found = Output.recalled(Path("b/y.latents.safetensors"), hostile)
    assert found.path == Path("b/x.mp4")
    with pytest.raises(UserError, match="that you did not: .*profile.wav"):
        jobs.ask(JOB, args(), found)


# Records from elsewhere


@pytest.fixture
def strange(here) -> Job:
    """A job that names a file and a picture that are here."""
    for name in ("model.safetensors", "secret.png"):
        (here / name).touch()
    files = Files(str(here / "model.safetensors"))
    request = Request("a", JOB.request.shape, inputs=(Image(str(here / "secret.png")),))
    return Job(request, recipes.distilled(), files)


def test_files_that_a_record_names_are_asked_for(strange, here, monkeypatch, capsys):
    with pytest.raises(UserError, match="that you did not: .*model.*secret.*--yes"):
        jobs.ask(strange, args(), OUTPUT)
    jobs.ask(strange, args("--yes"), OUTPUT)
    monkeypatch.setattr(sys, "stdin", Terminal())
    for answer, agreed in (("y", True), ("", False), ("no", False)):
        monkeypatch.setattr("builtins.input", lambda _: answer)
        if agreed:
            jobs.ask(strange, args(), OUTPUT)
        else:
            with pytest.raises(UserError, match="Not opened"):
                jobs.ask(strange, args(), OUTPUT)
    assert "secret.png" in capsys.readouterr().err


def test_what_was_named_or_would_be_used_anyway_is_not_asked_for(strange, here):
    jobs.ask(JOB, args(), OUTPUT)
    named = Job(JOB.request, JOB.recipe, strange.files)
    jobs.ask(named, args("--model", str(here / "model.safetensors")), OUTPUT)


@pytest.mark.parametrize("yes", [[], ["--yes"]])
def test_another_repository_is_never_fetched_for_a_record(yes, here):
    evil = Job(JOB.request, JOB.recipe, Files("evil/model"))
    with pytest.raises(UserError, match="names evil/model, which is not here.*--model"):
        jobs.ask(evil, args(*yes), OUTPUT)


# Shells


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_option(shell, capsys):
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*commands.COMMANDS, "memory-limit", "from-record", "hf-path"):
        assert word in script


@pytest.mark.slow
def test_bash_completes(tmp_path):
    script = subprocess.run(
        [sys.executable, "-m", "mlx_video", "completion", "bash"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    ).stdout
    asked = "COMP_WORDS=(mlx-video {}); COMP_CWORD={}; _shtab_mlx_video 2>/dev/null; echo ${{COMPREPLY[@]}}"
    for words, at, found in (
        ("gen", 1, "generate"),
        ("decode --til", 2, "--tiling"),
        ("generate --tiling agg", 3, "aggressive"),
        ("completion zs", 2, "zsh"),
        ("generate --image pyproject.t", 3, ""),  # a file, which bash completes itself
        ("generate --lora x.safetensors --pro", 4, "--prompt"),
    ):
        done = subprocess.run(
            ["bash", "-c", f"{script}\n{asked.format(words, at)}"],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.stdout.strip() == found, done.stderr


def completion_script(shell: str, path: Path) -> Path:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not here")
    with redirect_stdout(io.StringIO()) as script:
        assert cli.main(["completion", shell]) == 0
    path.write_text(script.getvalue(), encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "typed, found",
    [
        ("ge", "generate"),
        ("generate --tiling agg", "aggressive"),
        ("completion z", "zsh"),
        ("generate --image pyproject.t", "pyproject.toml"),
    ],
)
def test_fish_completes(typed, found, tmp_path):
    script = completion_script("fish", tmp_path / "script")
    done = subprocess.run(
        [
            "fish",
            "--no-config",
            "-c",
            f"source {script}; complete -C 'mlx-video {typed}'",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert found in done.stdout and done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "load",
    [
        'eval "$(cat _mlx-video)"',
        "source ./_mlx-video",
        "fpath=($PWD $fpath); autoload -Uz compinit; compinit -u -D",
    ],
)
def test_zsh_completes_however_the_script_is_loaded(load, tmp_path, monkeypatch):
    completion_script("zsh", tmp_path / "_mlx-video")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERM", "dumb")
    process, terminal = pty.fork()
    if not process:
        os.execvp("zsh", ["zsh", "-f"])
    shown = b""

    def wait(text: str) -> None:
        nonlocal shown
        end = time.monotonic() + 20
        while text.encode() not in shown:
            assert time.monotonic() < end, f"no {text!r} in {shown.decode()}"
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 65536)
        shown = b""

    try:
        os.write(terminal, f"stty cols 200; {load}; echo load''ed\n".encode())
        wait("loaded")
        for typed, found in (
            ("ge", "generate"),
            ("generate 'a ball' --til", "--tiling"),
            ("generate --lora x.safetensors 0.5 --til", "--tiling"),
            ("generate --image a.png --ima", "a.png --image"),
            ("decode _ml", "_mlx-video"),
        ):
            os.write(terminal, f"\x15mlx-video {typed}\t".encode())
            wait(found)
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(terminal)


def test_the_version_names_what_runs(capsys):
    assert cli.main(["--version"]) == 0
    told = capsys.readouterr().out
    assert "mlx-video 0" in told and "Device(" in told and "BLAS" in told


# Ctrl-C


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_is_one_line_whenever_it_comes(number, capsys):
    def stopped():
        os.kill(os.getpid(), number)
        while True:
            time.sleep(0.01)

    assert cli.guarded(stopped) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_a_second_stop_ends_the_process():
    code = (
        "import os, signal, time\n"
        "from mlx_video import cli\n"
        "def busy():\n"
        "    signal.signal(signal.SIGINT, lambda *_: None)\n"  # as MLX, which does not listen
        "    for _ in range(2):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(0.2)\n"
        "    time.sleep(60)\n"
        "cli.guarded(busy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=50)
    assert done.returncode == 130
