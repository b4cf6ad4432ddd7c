"""The command line: ``mindtuner VERB``. Exit codes: 0 done, 2 bad input, 130 Ctrl-C, 1 diverged training or a bug."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys

import mindtuner
from mindtuner.errors import TrainingDiverged, UserError, is_odd
from mindtuner.threads import follow_load

_VERBS = (
    "demo",
    "simulate",
    "fetch",
    "check",
    "embed",
    "pretrain",
    "tune",
    "fit",
    "decode",
    "live",
    "evaluate",
    "train-generator",
    "report",
    "compare",
    "score",
    "ablate",
    "curve",
    "fingerprint",
    "info",
    "convert",
    "fetch laion",
    "fetch weights",
    "fetch networks",
    "check weights",
)


LONGEST = 1000  # characters of what is said of bad input
_NAMED_OTHERWISE = {"source": "from", "weights": "generator"}  # parameter -> flag


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command. How it goes stands in its help."""

    def error(self, message: str):
        raise UserError(f"{' '.join(message.split())} (see {self.prog} --help)")


def parse(argv: list[str]) -> tuple[argparse.Namespace, argparse.ArgumentParser, dict]:
    """The options in ``argv``, the parser, and each verb's module. Raises UserError where the line is none of ours."""
    import importlib

    for flag, word in zip(["", *argv], argv, strict=False):
        if is_odd(word) or not word:
            where = f"{flag}: argument" if flag.startswith("--") else "argument"
            raise UserError(f"{where} {word!r}: is empty, no UTF-8, or has a control character; expected text on one line")
    parser = _Parser(
        prog="mindtuner",
        description="Read what a new person sees from one hour of fMRI.",
        epilog="Begin with: mindtuner demo",
    )
    parser.add_argument("--version", action="version", version=f"mindtuner {mindtuner.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    words = list(argv)
    if " ".join(words[:2]) in _VERBS:  # a verb of two words
        words[:2] = [" ".join(words[:2])]
    modules = {}
    for verb in _VERBS:
        modules[verb] = importlib.import_module(f"mindtuner.cli.{verb.replace('-', '_').replace(' ', '_')}")
        text = modules[verb].__doc__
        sub = verbs.add_parser(
            verb, help=text.splitlines()[0], description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if verb in words:  # another verb's options would only take time
            modules[verb].add_arguments(sub)
        sub.set_defaults(help_of_verb=sub.format_help)
    return parser.parse_args(words), parser, modules


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return the exit code."""
    options = None
    try:
        if argv is None:  # this process is ours alone
            follow_load()
        options, parser, modules = parse(sys.argv[1:] if argv is None else argv)
        _say_what_the_library_logs()
        if options.verb is None:
            parser.print_help()
            return 0
        if os.environ.get("WORLD_SIZE", "1") != "1":
            _one_of_several(options.verb)
        if hasattr(options, "device"):
            from mindtuner.runtime import use_device

            use_device(options.device)
        modules[options.verb].run(options)
        return 0
    except UserError as error:
        return _refuse(str(error) if options is None else _with_flags(str(error), options))
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        if error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}; expected a file or folder that can be read and written")
    except RuntimeError as error:
        import torch

        if not isinstance(error, torch.OutOfMemoryError):
            raise
        return _refuse(
            f"the GPU's memory is full ({str(error).partition('. ')[0]}); expected a smaller batch, a larger card, or "
            "--offload where a verb has it"
        )
    except TrainingDiverged as error:
        print(f"mindtuner: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmindtuner: stopped", file=sys.stderr)
        return 130


def _refuse(message: str) -> int:
    """Say in one line what is wrong with the input: a name in it may hold line breaks, or never end."""
    line = "".join(repr(letter)[1:-1] if is_odd(letter) else letter for letter in message)
    print(
        "mindtuner:", line if len(line) <= LONGEST else f"{line[: LONGEST // 2]} ... {line[-LONGEST // 2 :]}", file=sys.stderr
    )
    return 2


def _with_flags(message: str, options: argparse.Namespace) -> str:
    """The library names parameters, at the beginning of an error or `like this`; here they are the flags that set them."""
    help_text = options.help_of_verb()

    def flag(name: str) -> str | None:
        found = f"--{_NAMED_OTHERWISE.get(name, name).replace('_', '-')}"
        return found if re.search(rf"{found}\b(?!-)", help_text) else None

    first = re.match(r"[a-z][a-z_]*(?=:| is | are )", message)
    if first and flag(first[0]):
        message = flag(first[0]) + message[first.end() :]
    return re.sub(r"`([a-z][a-z_]*)`", lambda found: flag(found[1]) or found[1], message)


def _say_what_the_library_logs() -> None:
    logger = logging.getLogger("mindtuner")
    if not logger.handlers:
        logger.addHandler(_Aloud())
        logger.setLevel(logging.INFO)


class _Aloud(logging.Handler):
    """Prints: stdout may be another one each time."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), flush=True)


def _one_of_several(verb: str) -> None:
    """Of the processes of one launch only the first speaks. Raises UserError where the verb is none for several."""
    if verb not in ("embed", "pretrain", "tune"):
        raise UserError(f"{verb}: runs in one process; expected embed, pretrain or tune under a launcher")
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w")


if __name__ == "__main__":
    sys.exit(main())
