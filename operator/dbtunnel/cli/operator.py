"""`dbtunnel operator`: runs the operator."""

import argparse
import asyncio
import logging
import os
import sys

from dbtunnel.controller import logs
from dbtunnel.controller.process import run_operator
from dbtunnel.controller.settings import SettingError, Settings, add_flags

logger = logging.getLogger(__name__)

EXAMPLE = """\
  dbtunnel operator --forwarder-image registry.example.com/dbtunnel:0.1.0
      with the kubeconfig of this machine, or in a pod with its service account
  dbtunnel operator --forwarder-image dbtunnel:0.1.0 --namespaces shop"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting; each may be given by the environment as well."""
    add_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Runs until SIGTERM or SIGINT: 0. Returns 1 where the operator cannot go on, 2 where a setting cannot be used."""
    try:
        settings = Settings.read(arguments, os.environ)
    except SettingError as error:
        print(f"dbtunnel operator: {error}", file=sys.stderr)
        return 2
    logs.configure(settings.log_level, settings.log_format)
    try:
        asyncio.run(run_operator(settings))
    except Exception as error:
        logs.event(logger, "the operator ends", level=logging.ERROR, error=f"{type(error).__name__}: {error}")
        logger.debug("the operator ends", exc_info=True)
        return 1
    return 0
