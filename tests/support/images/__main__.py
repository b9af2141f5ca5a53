"""`make image`: builds an image and says where it is."""

import argparse
import sys

from tests.support.debian import MissingPackageError
from tests.support.images import CLIENT, OPERATOR, ImageError, build


def main() -> int:
    """Runs the command line; 1 where the image cannot be built."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.images")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("build", help="build an image into an archive")
    command.add_argument("--tag", metavar="REFERENCE", help="name of the image; default: by the digest of its inputs")
    command.add_argument("--client", action="store_true", help="the database clients' image instead of the operator's")
    arguments = parser.parse_args()
    try:
        image = build(CLIENT if arguments.client else OPERATOR, arguments.tag)
    except (ImageError, MissingPackageError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"archive:   {image.archive}")
    print(f"reference: {image.reference}")
    print(f"load it with `docker load --input {image.archive}`, or `ctr -n k8s.io images import {image.archive}`")
    return 0


if __name__ == "__main__":
    sys.exit(main())
