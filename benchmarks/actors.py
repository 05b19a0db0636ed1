"""Actor libraries compared: asks, tells, starts, memory, restarts; `python -m benchmarks.actors [--quick] [--json]`.

`benchmarks.report` runs `python -m benchmarks.actor_peers MODULE` for each subject and round. Add a subject by a module
there and a line here; add a metric by a measurement in `actor_peers.measure` and a line here. Trust ratios of one run,
not absolutes: a busy machine moves all figures, and by the same factor at best.
"""

from __future__ import annotations

from benchmarks.report import Metric, Subject, main

PEERS = "benchmarks.actor_peers"

METRICS = (
    Metric(name="ask_1", unit="1/s", title="asks, 1 caller, 1 actor"),
    Metric(name="ask_100", unit="1/s", title="asks, 100 callers, 1 actor"),
    Metric(name="ask_100x100", unit="1/s", title="asks, 100 callers, 100 actors"),
    Metric(name="tell", unit="1/s", title="tells until handled, 100,000 at once"),
    Metric(name="spawn", unit="1/s", title="actors started, then stopped, 10,000 at once"),
    Metric(name="idle_kib", unit="KiB", title="resident memory per idle actor, of 10,000", higher_is_better=False),
    Metric(
        name="ask_busy_us", unit="us", title="ask to an actor with 1,000 messages under way", higher_is_better=False
    ),
    Metric(name="restart_us", unit="us", title="crash to next answer, under a supervisor", higher_is_better=False),
)

SUBJECTS = (
    Subject(name="floor", command=(PEERS, "floor")),
    Subject(name="asyncio-queue", command=(PEERS, "asyncio_queue")),
    Subject(name="anyio", command=(PEERS, "anyio_stream"), packages=("anyio",)),
    Subject(name="promptside", command=(PEERS, "promptside_peer")),
    Subject(name="pykka", command=(PEERS, "pykka_peer"), packages=("pykka",)),
    Subject(name="triotp", command=(PEERS, "triotp_peer"), packages=("triotp",)),
    Subject(name="otpylib", command=(PEERS, "otpylib_peer"), packages=("otpylib",)),
    Subject(name="xoscar", command=(PEERS, "xoscar_peer"), packages=("xoscar",)),
    Subject(name="fauxtp", command=(PEERS, "fauxtp_peer"), packages=("fauxtp",)),
    Subject(name="autogen-core", command=(PEERS, "autogen_peer"), packages=("autogen-core",)),
    Subject(name="papyra", command=(PEERS, "papyra_peer"), packages=("papyra",)),
    Subject(name="casty", command=(PEERS, "casty_peer"), packages=("casty",), python=(3, 12)),
    Subject(name="async-pykka", command=(PEERS, "async_pykka_peer"), packages=("async-pykka",), python=(3, 12)),
    Subject(name="floor", command=(PEERS, "floor", "--uvloop"), packages=("uvloop",), suffix="_uvloop"),
    Subject(name="promptside", command=(PEERS, "promptside_peer", "--uvloop"), packages=("uvloop",), suffix="_uvloop"),
)

if __name__ == "__main__":
    main("actors", METRICS, SUBJECTS)
