"""Installs the libraries of the `bench` extra one by one and names those that do not install; `make bench` calls it.

One by one, because a peer that has no build for this Python must not take the others with it. What promptside itself
runs on is pinned meanwhile: a peer that would change it is not installed.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import requires, version

from packaging.requirements import Requirement


def main() -> None:
    pins: list[str] = []
    peers: list[Requirement] = []
    for line in requires("promptside") or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": "local"}):
            pins.append(f"{requirement.name}=={version(requirement.name)}")
        elif requirement.marker.evaluate({"extra": "bench"}):
            peers.append(requirement)

    for peer in peers:
        wanted = f"{peer.name}{peer.specifier}"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        done = subprocess.run([*pip, "install", wanted, *pins], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            print(f"  {peer.name} {version(peer.name)}", flush=True)
        else:
            errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()]
            print(f"  {peer.name} is not installed: {errors[-1]}", flush=True)


if __name__ == "__main__":
    main()
