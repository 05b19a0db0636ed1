#!/usr/bin/env bash
# Builds the wheel, looks at what is in it, installs it where nothing else of this folder is, and uses it from an empty
# folder. `make wheel` calls it. Usage: wheel_check.sh ENVIRONMENT
set -euo pipefail
python=$1/bin/python uv=(bash .ci/uv.sh "$1")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${uv[@]}" build -q --wheel --python "$python" --build-constraints constraints.txt --out-dir "$work" .
wheel=$(ls "$work"/promptside-*.whl)
"$python" - "$wheel" <<'PY'
import sys, zipfile

names = zipfile.ZipFile(sys.argv[1]).namelist()
foreign = [name for name in names if name.split("/")[0] != "promptside" and ".dist-info/" not in name]
assert not foreign, f"the wheel holds more than promptside: {foreign}"
assert "promptside/py.typed" in names, "the wheel lacks promptside/py.typed"
assert any(name.endswith("licenses/LICENSE") for name in names), "the wheel lacks its license"
PY

"${uv[@]}" venv -q --python "$python" "$work/venv"
"${uv[@]}" pip install -q --python "$work/venv" --constraints constraints.txt "$wheel"
"${uv[@]}" pip check -q --python "$work/venv"

mkdir "$work/empty"
cd "$work/empty"
"$work/venv/bin/python" -I - <<'PY'
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
