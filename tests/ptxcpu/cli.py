"""Command line: python -m ptxcpu run|translate|info ..."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from . import toolchain
from .module import build, only_kernel, stored_ptx
from .parse import PtxError

FAKE_RUNTIME_SOURCES = (
    "launch.cpp",
    "symbols.cpp",
    "device.cpp",
    "driver.cpp",
    "streams.cpp",
    "library_kernels.cpp",
)


def fake_runtime():
    """Builds the fake CUDA runtime and driver on first use; returns the folder and the library."""
    source = toolchain.PACKAGE / "fakecudart"
    folder = toolchain.cache_dir() / f"fakecudart-{toolchain.fake_runtime_version()}"
    library = folder / "libfakecudart.so"
    if not library.exists():
        with toolchain.locked(folder.name):
            if not library.exists():
                folder.mkdir(exist_ok=True)
                unsupported = folder / "unsupported.o"
                subprocess.run(
                    [
                        "gcc",
                        "-O1",
                        "-fPIC",
                        "-c",
                        str(source / "unsupported.c"),
                        "-o",
                        str(unsupported),
                    ],
                    check=True,
                    env=toolchain.clean_environment(),
                )
                subprocess.run(
                    [
                        "gcc",
                        "-O1",
                        "-fPIC",
                        "-shared",
                        str(source / "driver_stub.c"),
                        "-Wl,-soname,libcuda.so.1",
                        "-o",
                        str(folder / "libcuda.so.1"),
                    ],
                    check=True,
                    env=toolchain.clean_environment(),
                )
                (folder / "libcuda.so").unlink(missing_ok=True)
                (folder / "libcuda.so").symlink_to("libcuda.so.1")  # for -lcuda
                toolchain.compile_library(
                    library,
                    [source / name for name in FAKE_RUNTIME_SOURCES],
                    ["-O1", "-I", toolchain.cuda_include(), unsupported, "-ldl"],
                )
    return folder, library


def prepend(environment, name, *values, separator=":"):
    parts = [str(v) for v in values] + [p for p in environment.get(name, "").split(separator) if p]
    environment[name] = separator.join(dict.fromkeys(parts))


def run_environment(options):
    """The environment in which a program sees the emulated device."""
    toolchain.runtime_library()
    home = toolchain.PACKAGE.parent
    environment = dict(os.environ)
    try:
        folder, library = fake_runtime()
        prepend(environment, "LD_PRELOAD", library)
        prepend(environment, "LD_LIBRARY_PATH", folder)
        prepend(environment, "LIBRARY_PATH", folder)
        if toolchain.cuda_home():
            environment.setdefault("CUDA_HOME", str(toolchain.cuda_home()))
    except toolchain.BuildError as error:
        if not options.triton:
            raise
        print(f"ptxcpu: no fake CUDA device, only Triton on CPU tensors ({error})", file=sys.stderr)
    prepend(environment, "PYTHONPATH", toolchain.PACKAGE / "inject", home)
    environment.update(
        {
            "PTXCPU_PYTHON": sys.executable,
            "PTXCPU_HOME": str(home),
            "PTXCPU_ACTIVE": "1",
            "PTXCPU_CHECK": str(options.check),
            "PTXCPU_ORDER": str(options.order),
            "PTXCPU_SEED": str(options.seed),
            "PTXCPU_LOG": str(int(options.log)),
        }
    )
    if options.threads:
        environment["PTXCPU_THREADS"] = str(options.threads)
    if options.report:
        environment["PTXCPU_REPORT"] = str(Path(options.report).resolve())
    return environment


def command_run(options):
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        sys.exit("ptxcpu run: no command given")
    if command[0] in ("python", "python3"):
        command[0] = sys.executable
    environment = run_environment(options)
    sys.stdout.flush()
    os.execvpe(command[0], command, environment)


def command_translate(options):
    """Prints the PTX file and, last, the library: of one kernel, or of the module's variables."""
    toolchain.die_with_parent()
    path = Path(options.file)
    text = path if path.suffix == ".ptx" else stored_ptx(path)
    ptx = text.read_text()
    library, facts = build(only_kernel(ptx), options.profile)
    if options.kernel:
        library, facts = build(only_kernel(ptx, options.kernel), options.profile, base=library)
    for problem in facts["unsupported"]:
        print("ptxcpu: unsupported PTX, an error only if executed:", problem, file=sys.stderr)
    print(text)
    print(library)


def command_info(_options):
    print("cache      ", toolchain.cache_dir())
    print("compiler   ", toolchain.compiler())
    print("CUDA home  ", toolchain.cuda_home())
    for tool in ("nvcc", "ptxas", "cuobjdump"):
        print(f"{tool:11}", toolchain.find_tool(tool))


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m ptxcpu", description="Run CUDA and Triton kernels on the CPU."
    )
    commands = parser.add_subparsers(dest="name", required=True)
    run = commands.add_parser("run", help="run a program that sees one emulated CUDA device")
    run.add_argument(
        "--check",
        type=int,
        choices=(0, 1, 2),
        default=1,
        help="0 none, 1 bounds, alignment and barriers (default), 2 also shared-memory races",
    )
    run.add_argument(
        "--order",
        type=int,
        choices=(0, 1, 2),
        default=0,
        help="thread order: ascending, last-in first-out, random",
    )
    run.add_argument("--seed", type=int, default=1, help="seed of --order 2")
    run.add_argument("--threads", type=int, help="OS threads running blocks (default 2)")
    run.add_argument("--log", action="store_true", help="print every launch")
    run.add_argument(
        "--triton",
        action="store_true",
        help="go on without the fake CUDA device where it cannot be built: Triton on CPU tensors",
    )
    run.add_argument("--report", metavar="FILE", help="append one JSON line of counts per launch")
    run.add_argument("command", nargs=argparse.REMAINDER, help="-- program arguments...")
    run.set_defaults(action=command_run)
    translate = commands.add_parser(
        "translate", help="translate PTX, a fat binary or a host object; print the library"
    )
    translate.add_argument("file")
    translate.add_argument(
        "--kernel", help="the kernel to translate; without it, only the module's variables"
    )
    translate.add_argument("--profile", action="store_true")
    translate.set_defaults(action=command_translate)
    commands.add_parser("info", help="show the tools found").set_defaults(action=command_info)
    options = parser.parse_args(arguments)
    try:
        options.action(options)
    except (PtxError, toolchain.BuildError) as error:
        sys.exit(f"ptxcpu: {error}")
