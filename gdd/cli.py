"""What the commands share: typed arguments in, one clear line and exit code 2 on bad input."""

import os
import sys
from collections.abc import Callable
from typing import Any

import tyro


def run_cli(arguments: Any, main: Callable[[Any], None],
            parse: Callable[[list[str], str], Any] | None = None) -> None:
    """Parse `arguments` (a dataclass, or a union of them) from the command line and call `main`
    with the result; `parse(words, prog)` is for what tyro alone cannot parse.

    ValueError and OSError are the user's input: their message is printed, exit code 2. RuntimeError
    and FloatingPointError are a run that failed: exit code 1. GDD_DEBUG=1 shows the traceback
    instead.
    """
    module = getattr(sys.modules["__main__"], "__spec__", None)
    name = module.name.removesuffix(".__main__") if module else sys.argv[0]
    prog, words = f"python -m {name}", sys.argv[1:]
    try:
        main(parse(words, prog) if parse else tyro.cli(arguments, args=words, prog=prog))
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        _fail(error, 2)
    except (RuntimeError, FloatingPointError) as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on where the last tick was saved")


def _fail(error: Exception, code: int) -> None:
    if os.environ.get("GDD_DEBUG"):
        raise error
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    sys.exit(code)
