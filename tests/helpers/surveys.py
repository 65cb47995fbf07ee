"""Small forms with real pictures, made without any network, and a survey that is served by a process of its own."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from konkyo.survey.form import Form, Item

METHODS = ("secret_alpha", "secret_beta")
TEXTS = {
    "en": {"title": "Maps", "question": "Which map is better for {target}?", "consent": "Voluntary.\n\nAnonymous."},
    "ja": {"title": "マップ", "question": "{target} はどちらですか。", "consent": "任意です。"},
}


def small_form(
    folder: Path,
    *,
    plain: int = 4,
    repeats: int = 1,
    attention: int = 1,
    methods: tuple[str, ...] = METHODS,
    target: str = "cat",
    title: str = "Maps",
    seed: int = 0,
) -> Form:
    """Writes a form whose pictures have a colour each."""
    folder.mkdir(parents=True, exist_ok=True)
    digests: dict[str, str] = {}

    def picture(name: str, colour: tuple[int, int, int]) -> str:
        file = hashlib.sha256(f"{seed}{name}".encode()).hexdigest()[:20] + ".webp"
        Image.new("RGB", (64, 48), colour).save(folder / file, lossless=True)
        digests[file] = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        return file

    items = []
    for n in range(plain + attention):
        pictures = {m: picture(f"{n}{m}", (200, 20 * n, 90 * k)) for k, m in enumerate(methods)}
        original = picture(f"{n}", (20 * n, 200, 20))
        kind, expected = ("plain", None) if n < plain else ("attention", "left")
        items.append(Item(f"{n:03d}", kind, f"{n}.jpg", "", target, original, pictures, expected=expected))  # type: ignore[arg-type]
    for n in range(repeats):
        first = items[n]
        items.append(Item(f"r{n:02d}", "repeat", first.image, "", target, first.original, first.pictures, of=first.id))
    texts = {lang: {**words, "title": title} if title != "Maps" else words for lang, words in TEXTS.items()}
    form = Form(texts, methods, tuple(items), seed, digests=digests)
    form.save(folder)
    return form


@contextmanager
def served(folder: Path, database: Path, *, invite: int = 0) -> Iterator[tuple[str, list[str], subprocess.Popen[str]]]:
    """Serves a form in a process of its own. -> (address, links of those who are invited, the process)"""
    command = [sys.executable, "-m", "konkyo", "survey", "serve", str(folder), "--database", str(database)]
    command += ["--port", "0", "--invite", str(invite)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    try:
        assert process.stdout is not None
        address = process.stdout.readline().split()[-1]
        links = [process.stdout.readline().strip() for _ in range(invite)]
        yield address, links, process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
