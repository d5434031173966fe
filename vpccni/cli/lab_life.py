"""Beginning and end of a lab, seen from outside of its world."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from vpccni.adapters import cni_files
from vpccni.cli.output import console
from vpccni.cli.problems import NO_ANSWER, NO_WORLD, USAGE, CommandError
from vpccni.errors import PermanentError, sentence
from vpccni.lab import standing_file
from vpccni.lab.ec2.types import INSTANCE_TYPES
from vpccni.lab.fabric import enter
from vpccni.lab.places import is_in_use
from vpccni.lab.standing_file import StandingLab
from vpccni.settings import read_settings

SUPERVISOR_START_VARIABLE: Final = "VPCCNI_SUPERVISOR_START"
"""Inside a world: when its supervisor was started, in clock ticks; there it cannot be looked up."""

LAB_NAME: Final = "lab"
"""The standing lab's name, and so its directory's."""

BOOT_TIMEOUT_S: Final = 60.0
DOWN_TIMEOUT_S: Final = 15.0
LOG_NAME: Final = "standing.log"
_POLL_S: Final = 0.05


def require_possible() -> None:
    """See that a lab can run here.

    Raises:
        CommandError: it cannot; the message says what is missing and what to do.
    """
    try:
        cni_files.find_plugin()
    except PermanentError as error:
        raise CommandError(f"The CNI executable is not built: {error.detail}.", NO_WORLD) from error
    reason = enter.why_impossible()
    if reason is not None:
        raise CommandError(f"No lab can run here ({reason.code}). {reason.message}", NO_WORLD)


def enter_world_or_explain() -> None:
    """Go on inside a world: returns there. Outside, runs this command line inside and exits with its status.

    Raises:
        CommandError: no world can be made; the message says why.
    """
    if enter.is_inside():
        return
    require_possible()
    os.environ[SUPERVISOR_START_VARIABLE] = str(standing_file.start_time_of(os.getpid()))
    try:
        enter.enter_world()
    except enter.NoWorldError as error:
        raise CommandError(f"No lab can run here: {error}.", NO_WORLD) from error


def checked_settings(pairs: Sequence[str]) -> dict[str, str]:
    """Take ``NAME=VALUE`` pairs apart, and see that an agent would start with them.

    Raises:
        CommandError: one is no pair, or an agent would refuse; the message names it.
    """
    settings = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise CommandError(f"--env takes NAME=VALUE, not {pair!r}.", USAGE)
        settings[name] = value
    try:
        read_settings(settings)
    except PermanentError as refused:
        raise CommandError(sentence(refused.reason, refused.detail), USAGE) from refused
    return settings


def check_instance_type(name: str) -> None:
    """See that the emulated region has this type.

    Raises:
        CommandError: it has not.
    """
    if name not in INSTANCE_TYPES:
        known = ", ".join(INSTANCE_TYPES)
        raise CommandError(f"The region offers no {name!r}; it offers {known}.", USAGE)


def bring_up(notes: Path, arguments: Sequence[str], *, quiet: bool) -> StandingLab:
    """Start a lab that outlives this command; return its note when its nodes are ready.

    Raises:
        CommandError: one stands already, or it did not come up; then only its files are left, to be looked at.
    """
    before = standing_file.read(notes)
    if before is not None and before.is_running:
        raise CommandError("A lab is up already. `vpccni lab status` shows it, `vpccni lab down` ends it.")
    take_down(notes)
    notes.mkdir(parents=True, exist_ok=True)
    log = notes / LOG_NAME
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "vpccni", "lab", "serve", *arguments, "--directory", str(notes)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # it must not hear the terminal's Ctrl-C or its end
        )
    try:
        return _wait_up(process, notes, log, quiet=quiet)
    except BaseException:
        process.terminate()
        process.wait()
        standing_file.remove(notes)
        raise


def _wait_up(process: subprocess.Popen[bytes], notes: Path, log: Path, *, quiet: bool) -> StandingLab:
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    err, said = console(stderr=True), ""
    while time.monotonic() < deadline:
        note = standing_file.read(notes)
        if note is not None and note.supervisor_pid == process.pid:
            if note.phase == "ready":
                return note
            if note.message != said and not quiet:
                said = note.message
                err.print(f"booting: {said}", style="dim")
        if process.poll() is not None:
            tail = log.read_text(errors="replace").strip()[-1500:]
            raise CommandError(f"The lab did not come up (exit status {process.returncode}):\n{tail}")
        time.sleep(_POLL_S)
    raise CommandError(f"The lab did not come up within {BOOT_TIMEOUT_S:.0f} s: {said}.", NO_ANSWER)


def take_down(notes: Path) -> bool:
    """End the standing lab and remove its files, also those of one that was killed; tell whether there were any.

    Raises:
        CommandError: it is another user's, or it does not end.
    """
    note = standing_file.read(notes)
    if note is not None and note.is_running:
        try:
            _end(note)
        except PermissionError as error:
            raise CommandError(
                f"The lab (PID {note.supervisor_pid}) is another user's; end it as that user."
            ) from error
    files = [notes / LAB_NAME, notes / LOG_NAME, *([Path(note.run_directory)] if note is not None else [])]
    was_there = note is not None or any(path.exists() for path in files)
    if is_in_use(notes / LAB_NAME):
        raise CommandError(
            "The lab is not ready to be ended (it has only begun to boot); try again in a moment."
        )
    for path in files:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    standing_file.remove(notes)
    left = [str(path) for path in files if path.exists()]
    if left:
        raise CommandError(f"The lab has ended, but this could not be removed: {', '.join(left)}.")
    return was_there


def _end(note: StandingLab) -> None:
    """SIGTERM, then SIGKILL: the world's processes and namespaces go with its supervisor, by the kernel."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.kill(note.supervisor_pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + DOWN_TIMEOUT_S
        while time.monotonic() < deadline:
            if not note.is_running:
                return
            time.sleep(_POLL_S)
    raise CommandError(f"The lab's supervisor, PID {note.supervisor_pid}, does not end.")


def run_inside(standing: StandingLab, netns: str, command: Sequence[str]) -> NoReturn:
    """Become a command inside a network namespace of the lab's world; it ends with the lab at the latest.

    Raises:
        CommandError: there is no nsenter, or no such command.
    """
    nsenter, program = enter.find_program("nsenter"), enter.find_program(command[0])
    if nsenter is None or program is None:
        raise CommandError(
            f"Not installed: {command[0] if program is None else 'nsenter (util-linux)'}.", USAGE
        )
    target = f"/proc/{standing.supervisor_pid}/ns"
    user = []
    if os.stat(f"{target}/user").st_ino != os.stat("/proc/self/ns/user").st_ino:
        user = [f"--user={target}/user", "--preserve-credentials"]
    # The supervisor itself is outside of the PID namespace that its children are in.
    world = [
        nsenter,
        *user,
        f"--mount={target}/mnt",
        f"--pid={target}/pid_for_children",
        f"--net={target}/net",
    ]
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    sys.stdout.flush()
    argv = [*world, f"--wd={os.getcwd()}", "--", nsenter, f"--net={netns}", "--", program, *command[1:]]
    os.execv(nsenter, argv)  # noqa: S606 - the caller's own command, and no shell
