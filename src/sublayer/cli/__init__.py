"""The command line: thin, and quick to start, since each command imports what it needs when it runs."""

import signal
import sys

import click

from sublayer import __version__
from sublayer.cli.audit import audit, diff
from sublayer.cli.bench import bench
from sublayer.cli.convert import convert
from sublayer.cli.cost import cost
from sublayer.cli.designs import designs, show
from sublayer.cli.finetune import finetune
from sublayer.cli.probe import probe
from sublayer.cli.training import compare, train
from sublayer.train.distributed import leave, refuse


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="sublayer")
def cli() -> None:
    """Write how a Transformer block is wired as one line; build, train, measure and compare what it says.

    DESIGN is a catalogue name (`sublayer designs`) or an equation such as "x = norm(x + attn(x)); x = norm(x +
    ffn(x))".
    """


MOST = 2000  # characters of a message

for command in (compare, train, finetune, convert, audit, diff, probe, show, designs, cost, bench):
    cli.add_command(command)


def main() -> None:
    """Run the command line. A user's mistake is one message on standard error and exit code 2."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt) as error:
        why = error.__cause__ if isinstance(error, click.Abort) else error
        number = getattr(why, "number", signal.SIGINT)  # of the signal, where the error knows it
        print("sublayer: interrupted; --resume goes on from what was saved", file=sys.stderr)
        code = 128 + number
    except _Terminated as stop:
        print("sublayer: stopped by SIGTERM; --resume goes on from what was saved", file=sys.stderr)
        code = stop.code
    except ValueError as error:
        if not _is_ours(error):
            raise
        refuse(f"sublayer: {shown(str(error))}")
        code = 2
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has seen enough
        code = 0
    except OSError as error:
        print(f"sublayer: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        code = 2
    leave(code if isinstance(code, int) else 0)


class _Terminated(SystemExit):
    """SIGTERM came where nothing had to be saved first."""


def _terminate(number: int, frame: object) -> None:
    raise _Terminated(128 + number)


def shown(message: str) -> str:
    """A message that quotes something very long, with the middle of it left out."""
    return message if len(message) <= MOST else f"{message[: MOST // 2]} [...] {message[-MOST // 2 :]}"


def _is_ours(error: ValueError) -> bool:
    """Whether an error is one of this package's own, which are written for users."""
    return type(error).__module__.startswith("sublayer.")
