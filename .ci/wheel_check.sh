#!/usr/bin/env bash
# Builds the wheel, looks at what is in it, installs it where nothing else of this folder is, and uses it from an empty
# folder. `make wheel` calls it. Usage: wheel_check.sh PYTHON FOLDER
# FOLDER is kept: its dependencies are installed anew only when pyproject.toml has changed; promptside itself every time.
set -euo pipefail
python=$1 folder=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m build --wheel --no-isolation --outdir "$work" . >"$work/build.log" 2>&1 || { cat "$work/build.log" >&2; exit 1; }
wheel=$(ls "$work"/promptside-*.whl)
"$python" - "$wheel" <<'PY'
import sys, zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
foreign = [name for name in names if name.split("/")[0] != "promptside" and ".dist-info/" not in name]
assert not foreign, f"the wheel holds more than promptside: {foreign}"
assert "promptside/py.typed" in names, "the wheel lacks promptside/py.typed"
assert any(name.endswith("licenses/LICENSE") for name in names), "the wheel lacks its license"
PY

pip=("$folder/bin/python" -m pip --disable-pip-version-check -qq)
if ! cmp -s pyproject.toml "$folder/.installed" || ! "$folder/bin/python" -c ''; then
    echo "Installing the wheel and what it depends on in a new environment: about a minute, once..."
    "$python" -m venv --clear "$folder"
    "${pip[@]}" install "$wheel"
    cp pyproject.toml "$folder/.installed"
fi
"${pip[@]}" install --no-deps --force-reinstall "$wheel"
"${pip[@]}" check

mkdir "$work/empty"
here=$PWD
cd "$work/empty"
case $folder in /*) ;; *) folder=$here/$folder ;; esac
"$folder/bin/python" -I - <<'PY'
import asyncio
import sys

import promptside

assert "site-packages" in promptside.__file__, promptside.__file__
assert not {"dspy", "litellm", "numpy"} & set(sys.modules), "importing promptside imported something heavy"

from promptside.actors import Actor, ActorSystem


class Counter(Actor):
    def __init__(self) -> None:
        self.total = 0

    async def add(self, amount: int) -> int:
        self.total += amount
        return self.total


async def main() -> None:
    async with ActorSystem() as system:
        counter = await system.spawn(Counter)
        counter.tell(Counter.add, 2)
        assert await counter.ask(Counter.add, 3) == 5


asyncio.run(main())
import promptside.pools, promptside.programs, promptside.supervision, promptside.testing
PY
[ -z "$(ls)" ] || { echo "using promptside left files behind: $(ls)" >&2; exit 1; }
echo "wheel: $(basename "$wheel") installs, imports and runs"
