"""Installs the Python packages of a set into an environment, with uv. Standard library only."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from bootstrap.interpreter import python_of
from bootstrap.missing import Missing, run_logged
from bootstrap.stack import ROOT, Stack, pinned, requirements

REMEDY = "connect, or set PIP_INDEX_URL or UV_DEFAULT_INDEX to a package index that this machine reaches"
OLDEST_TORCH = (2, 4)

# pip's setting -> uv's variable, and the variables that count as the user's own word to uv
UV_VARIABLES = {
    "index-url": ("UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "extra-index-url": ("UV_INDEX", "UV_EXTRA_INDEX_URL"),
    "find-links": ("UV_FIND_LINKS",),
    "no-index": ("UV_NO_INDEX",),
    "trusted-host": ("UV_INSECURE_HOST",),
    "timeout": ("UV_HTTP_TIMEOUT",),
    "cert": ("SSL_CERT_FILE",),
    "proxy": ("ALL_PROXY", "HTTPS_PROXY", "https_proxy"),
}


def install_packages(env: Path, stack: Stack, *, ours: bool) -> None:
    """Bring an environment to the set; `ours` is false for a person's own that set-up sees for the first time.

    Raises:
        Missing: the packages cannot be fetched or written.
    """
    uv = find_uv(env, stack)
    uv_env = uv_environment(os.environ, pip_settings(python_of(env)))

    def pip_install(*words: str | Path, what: str) -> None:
        command = [uv, "pip", "install", "--python", python_of(env), *words]
        run_logged(command, log=stack.log("uv"), what=what, remedy=REMEDY, env=uv_env)

    if ours or not satisfies(env, stack, uv=uv, uv_env=uv_env):
        # setuptools builds the editable installation below
        wanted = [*requirements(stack), pinned(stack, "setuptools")]
        pip_install("-c", pins_for(env, stack), *wanted, what="installing the packages")
    for name in stack.without_dependencies:
        pip_install("--no-deps", pinned(stack, name), what=f"installing {name}")
    # without isolation nothing is fetched; `compat` puts the root on the path, so that a new package is found at once
    editable = ("--no-deps", "--no-build-isolation", "--config-settings", "editable_mode=compat", "-e", ROOT)
    pip_install(*editable, what="installing the project")


def find_uv(env: Path, stack: Stack) -> str:
    """uv: the environment's own, else brought by pip, else the one on the PATH.

    Raises:
        Missing: there is none.
    """
    if (env / "bin/uv").exists():
        return str(env / "bin/uv")
    on_path = shutil.which("uv")
    pip: list[str | Path] = [python_of(env), "-m", "pip"]
    has_pip = not subprocess.call([*pip, "--version"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if not has_pip and on_path:
        return on_path
    if not has_pip:
        raise Missing(
            f"{env} has neither pip nor uv: run {python_of(env)} -m ensurepip, or install uv, then run it again"
        )
    # two tries, not five: without a network each one waits
    command = [*pip, "install", "--disable-pip-version-check", "--retries", "2", pinned(stack, "uv")]
    run_logged(command, log=stack.log("pip"), what="installing uv", remedy=REMEDY, env=os.environ)
    return str(env / "bin/uv")


def pip_settings(python: Path) -> dict[str, str]:
    """What the user told pip in its files and variables: setting -> value, the nearer source winning."""
    command: list[str | Path] = [python, "-m", "pip", "config", "list"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    found = re.findall(r"^(global|install|:env:)\.([a-z-]+)='(.*)'$", done.stdout, flags=re.MULTILINE)
    order = ("global", "install", ":env:")
    return {name: value for _, name, value in sorted(found, key=lambda hit: order.index(hit[0]))}


def uv_environment(environ: Mapping[str, str], pip: Mapping[str, str]) -> dict[str, str]:
    """The environment for uv, which does not read pip's settings: handed on where uv has no word of its own."""
    env = dict(environ)
    for setting, variables in UV_VARIABLES.items():
        if pip.get(setting) and not any(env.get(variable) for variable in variables):
            separator = "," if setting == "find-links" else " "
            env[variables[0]] = separator.join(pip[setting].replace("\\n", " ").split())
    # A CPU-only index holds a few versions of much else: look at all indexes for the best match, as pip does. uv stops
    # at the first that knows the name.
    if env.get("UV_INDEX") or env.get("UV_EXTRA_INDEX_URL"):
        env.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")
    # an interpreter is chosen here, never fetched
    env["UV_PYTHON_DOWNLOADS"] = "never"
    return env


def satisfies(env: Path, stack: Stack, *, uv: str, uv_env: Mapping[str, str]) -> bool:
    """Whether an environment that a person made holds all that setup.cfg asks for already, within its loose bounds."""
    command = [uv, "pip", "install", "--offline", "--dry-run", "--python", str(python_of(env))]
    command += [*requirements(stack), "setuptools"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=dict(uv_env))
    return done.returncode == 0 and "Would make no changes" in done.stderr


def pins_for(env: Path, stack: Stack) -> Path:
    """The constraint file for an environment: the set's, unless another version of torch is there and stays."""
    torch = usable_torch(env)
    # a CPU-only build of the set's own version meets the set's pin
    if torch is None or str(torch["version"]).split("+")[0] == pinned(stack, "torch").split("==")[1]:
        return stack.constraints
    return constraints_beside(torch, stack)


def usable_torch(env: Path) -> dict[str, object] | None:
    """Version and requirements of the torch that is there, CPU or CUDA; None where there is none that would do."""
    ask = (
        "import importlib.metadata as m, json, torch;"
        "print(json.dumps({'version': m.version('torch'), 'requires': m.requires('torch') or []}))"
    )
    command: list[str | Path] = [python_of(env), "-c", ask]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        return None
    torch: dict[str, object] = json.loads(done.stdout)
    major, minor = str(torch["version"]).split(".")[:2]
    return torch if (int(major), int(minor)) >= OLDEST_TORCH else None


def constraints_beside(torch: Mapping[str, object], stack: Stack) -> Path:
    """The set's pins, but with the torch that is there and no pins of what that torch asks for itself."""
    requires = torch["requires"]
    names = requires if isinstance(requires, list) else []
    free = {"torch", "triton", *(plain_name(str(requirement)) for requirement in names)} - {"setuptools"}
    lines = stack.constraints.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if plain_name(line) not in free and not line.startswith(("nvidia-", "cuda-"))]
    file = stack.log("constraints").with_suffix(".txt")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join([*kept, f"torch=={torch['version']}", ""]), encoding="utf-8")
    return file


def plain_name(requirement: str) -> str:
    """The name that a requirement begins with, in its normal form."""
    name = re.match(r"[A-Za-z0-9._-]*", requirement)
    return re.sub(r"[-_.]+", "-", name.group() if name else "").lower()
