"""The command line: train LeNet, evaluate and use what was trained, describe the installation.

Results go to stdout, everything else to stderr, so that the closing lines can be parsed. A mistake
of the user's ends in one line that says what was wrong, and exit status 1.
"""

import json
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from enum import Enum
from functools import wraps
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from cnnkern import data, lenet, train

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
)
