"""The `pathar` command: parses arguments, runs one command, turns errors into exit codes.

Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted. Each command imports what it needs when it
runs, so that `pathar generate --url` loads no torch. Knows nothing of what the commands do.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathar import server
from pathar.contract import (
    LARGEST_SIDE,
    MAX_SIDE,
    PRIORITIES,
    VERSION,
    Setting,
    setting_of,
)
from pathar.errors import CommandError, InvalidRequest, ServiceError, UsageError

if TYPE_CHECKING:
    from pathar.generate import Wanted

MOST = 2**53 - 1
SAMPLING = ("seed", "cfg_scale", "temperature", "top_k", "top_p")
FIELDS = ("model", "n", "scale", *SAMPLING, "priority", "width", "height", "best_of")
RECIPE_FIELDS = (
    "format",
    "shard_size",
    "min_agreement",
    "best_of",
    "width",
    "height",
    "model",
    *SAMPLING,
)
TOOLS = ("coco", "geojson", "cellpose")
SHELLS = ("bash", "zsh", "fish", "tcsh")


class _Once(argparse.Action):
    """Stores a value, as argparse does by itself, but refuses an option that is given twice."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = vars(namespace).setdefault("_given", set())
        if option_string is not None and self.dest in given:
            parser.error(f"argument {option_string}: given twice, expected once")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """Takes options by their whole names, and each once unless it says otherwise."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)
        for name in (None, "store"):
            self.register("action", name, _Once)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.server:
            server.need(arguments.command)
        code: int = arguments.run(arguments)
    except KeyboardInterrupt:
        print("pathar: interrupted", file=sys.stderr)
        return 130
    except (UsageError, InvalidRequest) as error:
        print(f"pathar: {error}", file=sys.stderr)
        return 2
    except (CommandError, ServiceError) as error:
        print(f"pathar: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if error.name is None or find_spec(error.name.partition(".")[0]):
            raise
        needed = f"{error.name}: pip install 'pathar[{arguments.extra}]'"
        print(f"pathar: pathar {arguments.command} needs {needed}", file=sys.stderr)
        return 2
    return code


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(prog="pathar", description="Synthetic pathology patches with nuclear masks.")
    parser.add_argument("--version", action="version", version=f"pathar {VERSION}")
    parser.set_defaults(extra="all", server=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_up(commands.add_parser("up", help="start Redis, workers and the API; Ctrl-C stops them"))
    for name, run, extra, text in (
        ("serve", _serve, "service", "run the API alone"),
        ("worker", _worker, "worker", "run one worker alone"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run, extra=extra, server=True)
    generate = commands.add_parser("generate", help="draw pairs into a folder")
    _add_generate(generate)
    _add_size(generate)
    text = "draw pairs for a nuclear mask of your own into a folder"
    _add_paint(commands.add_parser("paint", help=text, description=text))
    text = "write the token ids of a patch, and what they keep of it"
    _add_encode(commands.add_parser("encode", help=text, description=text))
    text = "write the pixels of token ids"
    _add_decode(commands.add_parser("decode", help=text, description=text))
    text = "pull a data set into a folder: pairs by the thousand, from a recipe"
    _add_pull(commands.add_parser("pull", help=text, description=text))
    text = "write pairs as annotation tools read them"
    _add_export(commands.add_parser("export", help=text, description=text))
    text = "make, list and revoke API keys"
    where = (
        "in the Redis of PATHAR_REDIS_URL; without it, in that of the `pathar up` that runs here"
    )
    _add_keys(commands.add_parser("keys", help=text, description=f"{text}, {where}"))
    top = commands.add_parser("top", help="show queue, slots, rate and latency, live")
    top.add_argument("urls", nargs="*", metavar="URL", help="the API, then workers' metrics")
    top.add_argument("--once", action="store_true", help="show one second of metrics and end")
    top.set_defaults(run=_top, extra="top")
    doctor = commands.add_parser("doctor", help="check this installation and say how to fix it")
    doctor.add_argument("--json", action="store_true", help="for machines")
    doctor.set_defaults(run=_doctor)
    text = "say whether pairs are those that a model drew"
    _add_verify(commands.add_parser("verify", help=text, description=text))
    text = "write copies of pairs that carry signed content credentials (C2PA)"
    _add_sign(commands.add_parser("sign", help=text, description=text))
    demo = commands.add_parser("demo", help="start everything, draw pairs of every label, stop")
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder to write to")
    demo.set_defaults(run=_demo, server=True)
    text = "print what completes commands and options in a shell"
    completion = commands.add_parser("completion", help=text, description=text)
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=_completion)
    return parser


def _add_up(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        dest="checkpoints",
        metavar="FOLDER",
        help="serve this checkpoint; give it again to serve more, each by a worker of its own "
        "(default: PATHAR_CHECKPOINT)",
    )
    parser.set_defaults(run=_up, server=True)


def _add_generate(parser: argparse.ArgumentParser) -> None:
    drawn = parser.add_mutually_exclusive_group(required=True)
    named: dict[str, Any] = {"dest": "labels", "metavar": "LABEL"}
    text = "what to draw, e.g. histology; give it again to draw several, --n of each"
    drawn.add_argument("--label", action="append", help=text, **named)
    drawn.add_argument("--labels", nargs="+", help="several after each other", **named)
    parser.add_argument("--model", help="which model draws it, where several have the label")
    text = "at which scale, where the model knows several: 0.5 is half of the magnification"
    parser.add_argument("--scale", type=float, help=text)
    parser.add_argument("--n", type=int, default=1, help="how many pairs of each label (default 1)")
    parser.add_argument("--seed", type=int, help="0 to 2^53 - 1 (default: random)")
    _add_settings(parser)
    parser.add_argument(
        "--priority",
        choices=PRIORITIES,
        help="of the jobs of a service (default: bulk for more than 16 pairs)",
    )
    _add_place(parser)
    parser.set_defaults(run=_generate, extra="worker")


def _add_settings(parser: argparse.ArgumentParser) -> None:
    real, whole = _by_stream(float), _by_stream(int)
    apart = "1:2 is 1 for structure and 2 for appearance, here and below"
    parser.add_argument("--cfg-scale", type=real, help=f"guidance, 1 is off; {apart}")
    parser.add_argument("--temperature", type=real, help="0 is greedy")
    parser.add_argument("--top-k", type=whole, help="0 is off")
    parser.add_argument("--top-p", type=real, help="1 is off")


def _by_stream(number: Callable[[str], float]) -> Callable[[str], Setting]:
    """Reads a number for both streams, or two with a colon between them."""

    def read(text: str) -> Setting:
        try:
            return setting_of(text, number)
        except ValueError:
            kind = "an integer" if number is int else "a number"
            expected = f"{kind}, or two as 1:2, for structure and appearance"
            raise argparse.ArgumentTypeError(f"got {text!r}, expected {expected}") from None

    return read


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder to write to")
    parser.add_argument(
        "--url", help="ask the service at this URL (default: PATHAR_URL); without it, draw here"
    )


def _add_sides(parser: argparse.ArgumentParser) -> None:
    largest = f"more than the model's patches, up to {MAX_SIDE} (here without a service: "
    for name in ("width", "height"):
        text = f"pixels; {largest}{LARGEST_SIDE})" if name == "width" else "pixels, likewise"
        parser.add_argument(f"--{name}", type=int, help=text)


def _add_size(parser: argparse.ArgumentParser) -> None:
    _add_sides(parser)
    text = "write each image as a pyramidal OME-TIFF, too: pip install 'pathar[tiff]'"
    parser.add_argument("--ome-tiff", action="store_true", help=text)


def _add_paint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "mask", type=Path, metavar="MASK.png", help="grey, of the size of the pairs; 0 is ground"
    )
    parser.add_argument(
        "--image",
        type=Path,
        help="a PNG whose appearance to take too: RGB, of the size of the pairs",
    )
    parser.add_argument(
        "--keep", type=Path, help="a PNG, white where mask and image are kept; draw the rest anew"
    )
    text = "draws of which each pair is the one that what is kept fits best (default 1)"
    parser.add_argument("--best-of", type=int, help=text)
    _add_generate(parser)
    _add_size(parser)
    parser.set_defaults(run=_paint)


def _add_encode(parser: argparse.ArgumentParser) -> None:
    text = "RGB, of the model's size or --width and --height; without one, the appearance is drawn"
    parser.add_argument("--image", type=Path, help=text)
    text = "grey, 0 is ground; without one, the checkpoint's segmenter finds it in the image"
    parser.add_argument("--mask", type=Path, help=text)
    _add_one(parser)
    parser.set_defaults(run=_encode)


def _add_decode(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tokens", type=Path, metavar="TOKENS.json", help="as of a pair")
    _add_one(parser)
    parser.set_defaults(run=_decode)


def _add_one(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--label", required=True, help="what it shows, e.g. histology")
    parser.add_argument("--model", help="which model, where several have the label")
    _add_size(parser)
    _add_place(parser)
    parser.set_defaults(extra="worker")


def _add_pull(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", nargs="*", metavar="LABEL=N | RECIPE.toml", help="labels with counts, or a file"
    )
    parser.add_argument("--out", type=Path, default=Path("pairs"), help="folder (default pairs)")
    parser.add_argument("--seed", type=int, help="0 to 2^53 - 1 (default 0)")
    formats = "webdataset (default), parquet, folder or nnunet"
    parser.add_argument("--format", help=formats)
    parser.add_argument("--shard-size", type=int, help="pairs of a shard (default 1000)")
    least = "0 to 1: draw again what agrees less with the checkpoint's segmenter"
    parser.add_argument("--min-agreement", type=float, help=least)
    best = "draw so many for each pair and keep the one that agrees most"
    parser.add_argument("--best-of", type=int, help=best)
    _add_sides(parser)
    parser.add_argument("--model", help="which model draws, where several have a label")
    _add_settings(parser)
    where = "ask the service at this URL (default: PATHAR_URL); without either, draw here"
    parser.add_argument("--url", help=where)
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--dry-run", action="store_true", help="say time and size, from a few pairs")
    other.add_argument("--check", type=Path, metavar="FOLDER", help="compare with its manifest")
    parser.set_defaults(run=_pull, extra="worker")


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="PATH", help="folder, shard or archive")
    parser.add_argument("--to", required=True, choices=TOOLS, help="for which tools")
    parser.add_argument("--out", type=Path, required=True, help="new folder to write to")
    parser.set_defaults(run=_export)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    what = "PNGs, folders, shards, archives"
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help=what)
    parser.add_argument(
        "--regenerate",
        action="store_true",
        help="draw each pair again, by the checkpoint here (PATHAR_CHECKPOINT) or a service",
    )
    parser.add_argument("--url", help="the service that draws again (default: PATHAR_URL)")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=_verify, extra="worker")


def _add_sign(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="PNGs and folders")
    parser.add_argument(
        "--key", type=Path, required=True, help="PEM file of a private key and its certificates"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write copies to")
    parser.set_defaults(run=_sign, extra="sign")


def _add_keys(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    make = actions.add_parser("make", help="make a key and print it once")
    make.add_argument("name", help="a name for its owner")
    make.add_argument(
        "--weight", type=float, default=1.0, help="its share of the workers (default 1)"
    )
    make.add_argument("--rate", type=_count, help="requests per minute")
    make.add_argument("--waiting", type=_count, help="images that may wait in a queue")
    make.add_argument("--stored", type=_count, help="bytes of jobs and results")
    make.add_argument("--if-none", action="store_true", help="only if there is no key yet")
    where = make.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, help="write it to this file (mode 0600), print nothing")
    where.add_argument(
        "--from", type=Path, dest="given", help="take the key in this file, print nothing"
    )
    actions.add_parser("list", help="list the keys, without their secrets")
    revoke = actions.add_parser("revoke", help="revoke a key")
    revoke.add_argument("name")
    actions.add_parser("open", help="stop asking for keys, once all are revoked")
    parser.set_defaults(run=_keys, extra="service", server=True)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:20]) <= MOST):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer from 1 to 2^53 - 1")
    return int(text)


def _keys(arguments: argparse.Namespace) -> int:
    from pathar.api_keys import run

    return run(arguments, os.environ)


def _up(arguments: argparse.Namespace) -> int:
    from pathar.up import up

    return up(os.environ, arguments.checkpoints or [])


def _serve(_: argparse.Namespace) -> int:
    from service.__main__ import main as serve

    return serve()


def _worker(_: argparse.Namespace) -> int:
    from worker.__main__ import main as work

    return work()


def _generate(arguments: argparse.Namespace) -> int:
    from pathar.generate import generate

    generate(_wanted(arguments))
    return 0


def _paint(arguments: argparse.Namespace) -> int:
    from pathar.paint import paint

    paint(_wanted(arguments), arguments.mask, arguments.image, arguments.keep)
    return 0


def _encode(arguments: argparse.Namespace) -> int:
    from pathar.paint import encode

    encode(_wanted(arguments, one=True), arguments.image, arguments.mask)
    return 0


def _decode(arguments: argparse.Namespace) -> int:
    from pathar.paint import decode

    decode(_wanted(arguments, one=True), arguments.tokens)
    return 0


def _wanted(arguments: argparse.Namespace, *, one: bool = False) -> Wanted:
    """What the arguments ask for; with `one`, of one label, and the command settles the rest."""
    from pathar.generate import Wanted

    given = {name: getattr(arguments, name, None) for name in FIELDS}
    fields = {name: value for name, value in given.items() if value is not None}
    labels = [arguments.label] if one else arguments.labels
    url = arguments.url or os.environ.get("PATHAR_URL")
    tiff = getattr(arguments, "ome_tiff", False)
    if tiff and find_spec("tifffile") is None:
        raise UsageError("--ome-tiff: needs tifffile: pip install 'pathar[tiff]'")
    command = arguments.command
    return Wanted(labels, {"n": 1, **fields}, arguments.out, url, command=command, ome_tiff=tiff)


def _pull(arguments: argparse.Namespace) -> int:
    from pathar.pull import check_folder, dry_run, pull, read_recipe

    fields = {name: getattr(arguments, name) for name in RECIPE_FIELDS}
    given = {name: value for name, value in fields.items() if value is not None}
    if arguments.check is not None:
        if arguments.recipe or given:
            raise UsageError("--check: got a recipe besides, expected the folder alone")
        return check_folder(arguments.check)
    recipe = read_recipe(arguments.recipe, given)
    url = arguments.url or os.environ.get("PATHAR_URL") or None
    if arguments.dry_run:
        dry_run(recipe, arguments.out, url)
        return 0
    return pull(recipe, arguments.out, url)


def _export(arguments: argparse.Namespace) -> int:
    from pathar.export import export

    return export(arguments.source, arguments.to, arguments.out)


def _verify(arguments: argparse.Namespace) -> int:
    from pathar.verify import verify

    return verify(
        arguments.paths,
        os.environ,
        regenerate=arguments.regenerate,
        url=arguments.url,
        as_json=arguments.json,
    )


def _sign(arguments: argparse.Namespace) -> int:
    from pathar.sign import sign_copies

    return sign_copies(arguments.paths, arguments.key, arguments.out)


def _top(arguments: argparse.Namespace) -> int:
    from pathar.top import top

    return top(os.environ, arguments.urls, once=arguments.once)


def _doctor(arguments: argparse.Namespace) -> int:
    from pathar.doctor import doctor

    return doctor(os.environ, as_json=arguments.json)


def _completion(arguments: argparse.Namespace) -> int:
    import shtab

    parser = build_parser()
    for action in _actions(parser):
        if action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, arguments.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options and arguments of a parser, and those of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)


def _demo(arguments: argparse.Namespace) -> int:
    from pathar.demo import demo

    demo(arguments.out)
    return 0
