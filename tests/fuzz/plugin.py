"""Fuzz the CNI executable: ``plugin/fuzz/fuzz.c`` under libFuzzer, and every input that it keeps judged once more.

    python -m tests.fuzz.plugin --seconds 180
    python -m tests.fuzz.plugin --coverage

What comes out of the executable is judged here by Python's JSON parser, which knows nothing of ours. Inputs of a
run stay in ``build/fuzz/plugin`` and are where the next one begins; those that fail are ``crash-*`` there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from vpccni.lab.places import build_directory

SOURCE: Final = Path(__file__).parents[2] / "plugin" / "fuzz" / "fuzz.c"
CORPUS: Final = SOURCE.parent / "corpus"
DIRECTORY: Final = build_directory() / "fuzz" / "plugin"
_FLAGS: Final = ("-std=c11", "-D_XOPEN_SOURCE=700", "-Wall", "-Wextra", "-Werror", "-O1", "-g")
_SANITIZERS: Final = "address,undefined"
_CODES: Final = frozenset({4, 5, 6, 7, 11, 50})
"""What the executable says by itself; see the enum of ``main.c``."""
_OURS: Final = frozenset({"cniVersion", "code", "msg", "details"})


def why_no_fuzzer(directory: Path) -> str:
    """Empty when clang can build a fuzzer; otherwise what is missing."""
    if shutil.which("clang") is None:
        return "there is no clang"
    probe = directory / "probe.c"
    probe.write_text("int LLVMFuzzerTestOneInput(const char *d, long n) { return n < 0 && d; }\n")
    made = subprocess.run(
        ["clang", f"-fsanitize=fuzzer,{_SANITIZERS}", probe, "-o", directory / "probe"],
        capture_output=True,
        text=True,
    )
    return "" if made.returncode == 0 else f"clang builds no fuzzer: {made.stderr.strip()[:200]}"


def build(directory: Path, *, fuzzer: bool, compiler: str = "clang", extra: Sequence[str] = ()) -> Path:
    """The harness, as a fuzzer or as what runs given inputs once."""
    program = directory / ("fuzz" if fuzzer else f"replay-{compiler}")
    kind = [f"-fsanitize={'fuzzer,' if fuzzer else ''}{_SANITIZERS}", "-fno-sanitize-recover=all"]
    define = [] if fuzzer else ["-DREPLAY"]
    subprocess.run([compiler, *_FLAGS, *kind, *define, *extra, SOURCE, "-o", program], check=True)
    return program


def replay(program: Path, inputs: Sequence[Path]) -> list[dict[str, Any]]:
    """Run inputs; what came out of each. Raises ``CalledProcessError`` when a sanitizer or the harness objects."""
    outcomes = []
    for start in range(0, len(inputs), 500):
        part = inputs[start : start + 500]
        done = subprocess.run([program, *part], capture_output=True, text=True, check=True, timeout=600)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        if len(lines) != len(part):
            raise ValueError(f"{len(lines)} outcomes of {len(part)} inputs: {done.stderr[:500]}")
        outcomes += lines
    return outcomes


def wrong_in(outcome: dict[str, Any]) -> str:
    """What is wrong with an outcome; empty when nothing is."""
    printed, sent, entry = (bytes.fromhex(outcome[name]) for name in ("printed", "sent", "entry"))
    try:
        said = _object(printed) if printed else None
        if outcome["kept"]:
            request = _object(entry)["request"]
            if request["command"] != "DEL" or not isinstance(request["config"], dict):
                return "it keeps no DEL"
        head, _, body = sent.partition(b"\r\n\r\n")
        if body and head.endswith(b"Content-Length: %d" % len(body)):
            _object(body)
    except (ValueError, KeyError, TypeError) as error:
        return f"{error!r} in {printed[:300]!r}, {sent[:300]!r}, {entry[:300]!r}"
    if outcome["status"] not in (0, 1):
        return f"exit status {outcome['status']}"
    # What the daemon answers is passed on as it is.
    is_ours = outcome["status"] == 1 and not outcome["answered"]
    if is_ours and said is not None and (set(said) != _OURS or said["code"] not in _CODES):
        return f"no CNI error: {said}"
    return ""


def _object(encoded: bytes) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    decoded = json.loads(encoded.decode("utf-8"), parse_constant=refuse)
    if not isinstance(decoded, dict):
        raise ValueError("no object")
    return decoded


def judge(program: Path, inputs: Sequence[Path]) -> list[str]:
    """Run inputs and say what is wrong."""
    outcomes = replay(program, inputs)
    return [
        f"{path}: {wrong}" for path, each in zip(inputs, outcomes, strict=True) if (wrong := wrong_in(each))
    ]


def fuzz(program: Path, corpus: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the fuzzer from the corpus of the tree on; what it finds new goes into ``corpus``."""
    command = [
        str(program),
        "-max_len=8192",
        "-timeout=60",
        "-print_final_stats=1",
        f"-artifact_prefix={corpus}/",
    ]
    return subprocess.run([*command, *options, str(corpus), str(CORPUS)], capture_output=True, text=True)


def coverage(directory: Path, inputs: Sequence[Path]) -> str:
    """Lines that the inputs reach, by file, as ``llvm-cov`` tells it."""
    extra = ("-fprofile-instr-generate", "-fcoverage-mapping")
    program = build(directory, fuzzer=False, extra=extra)
    raw, data = directory / "raw", directory / "data"
    part = list(inputs)[:3000]
    subprocess.run([program, *part], check=True, capture_output=True, env={"LLVM_PROFILE_FILE": str(raw)})
    subprocess.run(["llvm-profdata", "merge", "-sparse", raw, "-o", data], check=True)
    told = subprocess.run(
        ["llvm-cov", "report", program, f"-instr-profile={data}"], check=True, capture_output=True, text=True
    )
    return told.stdout


def main() -> int:
    """Fuzz for a while; 0 if nothing is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.plugin")
    parser.add_argument("--seconds", type=int, default=180)
    parser.add_argument("--coverage", action="store_true", help="only tell which lines the inputs reach")
    options = parser.parse_args()
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vpccni-fuzz-") as name:
        directory = Path(name)
        if missing := why_no_fuzzer(directory):
            print(f"the executable was not fuzzed: {missing}")
            return 2
        status = 0
        if not options.coverage:
            done = fuzz(build(directory, fuzzer=True), DIRECTORY, f"-max_total_time={options.seconds}")
            status = done.returncode
            kept = [line for line in done.stderr.splitlines() if line.startswith(("stat::number_of", "Done"))]
            print("\n".join(kept) if status == 0 else done.stderr[-6000:])
        # What libFuzzer keeps is named by its digest; crash-… and slow-unit-… are told above.
        found = [path for path in DIRECTORY.iterdir() if "-" not in path.name]
        inputs = sorted([*CORPUS.iterdir(), *found])
        if options.coverage:
            print(coverage(directory, inputs))
            return 0
        wrong = judge(build(directory, fuzzer=False), inputs)
    print(f"{len(inputs)} inputs judged", *(f"WRONG: {each}" for each in wrong), sep="\n")
    return 1 if status or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
