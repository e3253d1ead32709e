"""The library, reached by its command line: path and folder from a connection, JSON from standard output."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow.sdk import BaseHook, Connection
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowNotFoundException

from airflow_provider_kubeflow.local_job import outside_environment

CONNECTION = "prefrestore"
REFUSED = 2
LINES = 20


class ProgramRefusedError(AirflowFailException):
    """The program says what a person must mend; another try would say the same."""


class ProgramCrashedError(AirflowException):
    """The program ended in another way."""


@dataclass(frozen=True)
class Answer:
    """What the program said: exit code, the JSON in the last line of its output or None, and its last message."""

    code: int
    value: dict[str, Any] | None
    message: str


@dataclass(frozen=True)
class Program:
    """The program and the folder it runs in, which holds its configuration ``params.yaml``."""

    path: str
    folder: str

    def ask(self, *arguments: str) -> Answer:
        """Run a command to its end.

        Raises:
            ProgramRefusedError: there is no such program or folder.
        """
        try:
            done = subprocess.run(
                [self.path, *arguments],
                cwd=self.folder,
                env=outside_environment(),
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise self._missing(error) from None
        return answer(done.returncode, done.stdout, done.stderr)

    async def ask_async(self, *arguments: str) -> Answer:
        """Run a command to its end, inside a triggerer. Errors as :meth:`ask`."""
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                self.path, *arguments, cwd=self.folder, env=outside_environment(), stdout=pipe, stderr=pipe
            )
        except OSError as error:
            raise self._missing(error) from None
        try:
            out, err = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        return answer(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))

    def call(self, *arguments: str) -> dict[str, Any]:
        """Run a command and return its JSON.

        Raises:
            ProgramRefusedError: it says that something must be mended.
            ProgramCrashedError: it ended in another way, or without JSON.
        """
        return accepted(self.ask(*arguments), arguments)

    def _missing(self, error: OSError) -> ProgramRefusedError:
        return ProgramRefusedError(
            f"{error.filename or self.path}: {error.strerror}: mend program or folder of connection {CONNECTION!r}"
        )


def accepted(answer: Answer, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the answer's JSON; errors as :meth:`Program.call`."""
    ended_well(answer, arguments)
    if answer.value is None:
        raise ProgramCrashedError(f"{' '.join(arguments[:2])}: printed no JSON: is it a program of this version?")
    return answer.value


def ended_well(answer: Answer, arguments: Sequence[str]) -> None:
    """Check the exit code; errors as :meth:`Program.call`."""
    if answer.code == REFUSED:
        raise ProgramRefusedError(answer.message)
    if answer.code:
        raise ProgramCrashedError(f"{' '.join(arguments[:2])}: exit code {answer.code}: {answer.message}")


def answer(code: int, out: str, err: str) -> Answer:
    """Return what a finished process said."""
    messages = [line.strip() for line in err.splitlines() if line.strip()]
    return Answer(code, last_json(out), messages[-1] if messages else "")


def last_json(text: str) -> dict[str, Any] | None:
    """Return the JSON object that a text is, or the last one that a line of it is; None if there is none."""
    for part in (text, *reversed(text.strip().splitlines()[-LINES:])):
        try:
            found = json.loads(part)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return None


def program() -> Program:
    """Return the program of the connection ``prefrestore``.

    Raises:
        ProgramRefusedError: there is no such connection, or it lacks something.
    """
    try:
        return program_of(BaseHook.get_connection(CONNECTION))
    except AirflowNotFoundException:
        raise _no_connection() from None


async def program_async() -> Program:
    """Return the same as :func:`program`, inside a triggerer."""
    try:
        return program_of(await BaseHook.aget_connection(CONNECTION))
    except AirflowNotFoundException:
        raise _no_connection() from None


def program_of(connection: Connection) -> Program:
    """Return the program that a connection describes; errors as :func:`program`."""
    extra: Mapping[str, Any] = connection.extra_dejson
    if missing := [key for key in ("program", "folder") if not extra.get(key)]:
        raise ProgramRefusedError(f"connection {CONNECTION!r}: needs {missing[0]} in extra")
    return Program(str(extra["program"]), str(extra["folder"]))


def _no_connection() -> ProgramRefusedError:
    return ProgramRefusedError(
        f"connection {CONNECTION!r} does not exist: add one of type generic with program and folder in extra"
    )
