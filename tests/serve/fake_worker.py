"""A worker that makes no clips, for tests of the server: it speaks the real one's lines, and obeys words in the prompt.

"slow" takes a second, "endless" a minute, "deaf" too but for the second interrupt, "fail" fails, "die" ends the process, "huge" writes a large file, "unknown" brings a notice. Anything else takes no time.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

MODEL = {
    "id": "fake",
    "width": 192,
    "height": 128,
    "num_frames": 49,
    "fps": 24.0,
    "generate_sound": True,
    "width_step": 64,
    "height_step": 64,
    "frame_step": 8,
    "recipes": ["distilled"],
    "steps": {"distilled": [64, 64]},
    "loras": ["sepia"],
}


def say(event: str, **fields) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def deaf_once(*_) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def make(id: str, request: dict, output: str) -> None:
    prompt = request["prompt"]
    if "deaf" in prompt:
        signal.signal(signal.SIGINT, deaf_once)
        for _ in range(200):
            say("progress", id=id, phase="stage 1", progress=10)
            time.sleep(0.3)
    for percent in (10, 50, 90):
        say("progress", id=id, phase="stage 1", progress=percent)
        time.sleep(60 if "endless" in prompt else 0.4 if "slow" in prompt else 0)
        if "die" in prompt:
            os.kill(os.getpid(), signal.SIGKILL)
    if "unknown" in prompt:
        say("notice", id=id, message="The model does not know: unknown.")
        say("notice", id=id, message="The model does not know: unknown.")
    if "fail" in prompt:
        return say("failed", id=id, code="bad_output", message="All frames are black.")
    for suffix in (".mp4", ".json", ".webp", ".sheet.webp"):
        size = 10**6 if "huge" in prompt else 100
        Path(output).with_suffix(suffix).write_bytes(bytes(size))
    say("done", id=id)


def main() -> None:
    say("ready", models=[MODEL])
    for line in sys.stdin:
        message = json.loads(line)
        if message["do"] == "estimate":
            peak = message["request"]["width"] * 10**6
            opened = " ".join(image["path"] for image in message["request"]["images"])
            estimate = {"peak_bytes": peak, "limit_bytes": 10**9, "refusal": opened}
            say("estimate", ticket=message["ticket"], estimate=estimate)
            continue
        try:
            make(message["id"], message["request"], message["output"])
        except KeyboardInterrupt:
            say("failed", id=message["id"], code="stopped", message="stopped")


if __name__ == "__main__":
    main()
