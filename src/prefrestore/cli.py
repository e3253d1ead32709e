"""The command line. Commands are modules of :mod:`prefrestore.commands`, loaded when they are asked for."""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable

import click

from prefrestore import __version__, commands
from prefrestore.errors import UserError

SILENT = {
    "DO_NOT_TRACK": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GX_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""Libraries that would report usage over the network do not, unless the user says otherwise."""


PLACE_ERRORS = frozenset({errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.ENOSPC, errno.ENOTDIR, errno.EROFS})
"""What the system says where a place cannot be written: the user's to mend, not the program's."""


class CommandFolder(click.Group):
    """A group whose commands are the modules of :mod:`prefrestore.commands`; ``_`` in a file name reads ``-``.

    A leading ``_`` marks a module that holds subcommands of another.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        """Return the names of all commands, sorted."""
        names = [module.name for module in pkgutil.iter_modules(commands.__path__)]
        return sorted(name.replace("_", "-") for name in names if not name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module, or return None if there is none of that name."""
        if cmd_name not in self.list_commands(ctx):
            return None
        module = importlib.import_module(f"{commands.__name__}.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command


@click.group(cls=CommandFolder, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="prefrestore")
def app() -> None:
    """Blind face restoration you can trust, and the pipeline that keeps it good."""


def main() -> None:
    """Entry point of the program."""
    sys.exit(guard(lambda: app.main(prog_name="prefrestore", standalone_mode=False)))


def guard(work: Callable[[], object]) -> int:
    """Run ``work`` and return the exit code; a user's mistake is one line on standard error and exit code 2."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    try:
        code = work()
    except UserError as error:
        return _failed(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        return _failed(error.format_message())
    except OSError as error:
        if error.errno not in PLACE_ERRORS:
            raise
        reason = f"{error.filename or 'output'}: {error.strerror}"
        return _failed(f"{reason}: free space or rights there, or choose another place")
    except (click.Abort, KeyboardInterrupt):
        return 130
    return code if isinstance(code, int) else 0


def _failed(message: str) -> int:
    click.echo(f"prefrestore: {' '.join(message.split())}", err=True)
    return 2
