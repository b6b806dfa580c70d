# SPDX-License-Identifier: Apache-2.0
"""libFuzzer on the native loader: a short run with a fixed seed; ``fuzz.c`` says what an input is.

For as long as you like (a crash leaves its input in the working directory)::

    src=tvmq/native/src; clang -g -O1 -fsanitize=fuzzer,address,undefined -Itvmq/native/include -I$src \\
        tests/tvmq/native/fuzz.c $(ls $src/*.c | grep -v kernels.c) -o fuzz -lm -lpthread -ldl
    export TVMQ_FUZZ_ARTIFACT=en-de.tvmq TVMQ_FUZZ_FOLDER=$(mktemp -d -p /dev/shm)
    mkdir corpus; ./fuzz corpus corpus; ./fuzz corpus -max_total_time=3600 -rss_limit_mb=512
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from targets import detect_host
from tvmq.native import library

HERE = Path(__file__).parent
RUNS = 1500
SANITIZERS = "fuzzer,address,undefined"


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    clang = shutil.which("clang")
    if clang is None:
        pytest.skip("no clang")
    program = tmp_path_factory.mktemp("fuzz") / "fuzz"
    files = [HERE / "fuzz.c", *(path for path in library.sources() if path.name != "kernels.c")]
    flags = ["-g", "-O1", f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all"]
    folders = [f"-I{library.FOLDER / name}" for name in ("include", "src")]
    words = [clang, *flags, *folders, *map(str, files), "-o", str(program), "-lm", "-lpthread", "-ldl"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode and "cannot find" in done.stderr:
        pytest.skip("clang has no libFuzzer (Debian: libclang-rt-14-dev)")
    assert done.returncode == 0, done.stderr
    return program


def test_the_loader_never_crashes(fuzzer: Path, compiled: Callable[..., Path], tmp_path: Path) -> None:
    copy, corpus = tmp_path / "artifact", tmp_path / "corpus"
    copy.mkdir()
    corpus.mkdir()
    artifact = compiled("3-bit", isa_levels=(detect_host()[0],))
    environment = os.environ | {"TVMQ_FUZZ_ARTIFACT": str(artifact), "TVMQ_FUZZ_FOLDER": str(copy)}
    subprocess.run([fuzzer, "corpus", corpus], check=True, env=environment)
    assert sorted(path.name for path in corpus.iterdir()) == ["0", "1", "2", "3"]
    options = (
        f"-runs={RUNS}",
        "-seed=1",
        "-rss_limit_mb=0",
        "-malloc_limit_mb=256",
        "-timeout=20",
        "-max_len=65536",
    )
    done = subprocess.run(
        [fuzzer, corpus, *options], capture_output=True, text=True, check=False, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"Done {RUNS} runs" in done.stderr
