"""What was saved with a pool's LM, and loaded: where its pool is, where it is not, and in another process."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cloudpickle
import dspy
import pytest
from dspy.clients.base_lm import BaseLM

from promptside.pools import Best, Endpoint, LMPool
from promptside.pools.lm.pooled_lm import PooledLM
from promptside.testing import FakeServer
from tests.support.pools import KEY, endpoint

MODEL = "openai/fake"


def program_with(lm: dspy.LM) -> dspy.Predict:
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    return program


def in_json(lm: dspy.LM, folder: Path, **options: Any) -> dspy.LM:
    path = folder / "program.json"
    program_with(lm).save(path)
    return loaded_from(path, **options)


def in_pickled_state(lm: dspy.LM, folder: Path) -> dspy.LM:
    path = folder / "program.pkl"
    program_with(lm).save(path)
    return loaded_from(path, allow_pickle=True)


def whole(lm: dspy.LM, folder: Path) -> dspy.LM:
    program_with(lm).save(folder / "program", save_program=True)
    return dspy.load(str(folder / "program"), allow_pickle=True).lm


def loaded_from(path: Path, **options: Any) -> dspy.LM:
    program = dspy.Predict("question -> answer")
    program.load(path, **options)
    return program.lm


WAYS: dict[str, Callable[[dspy.LM, Path], dspy.LM]] = {
    "JSON": in_json,
    "JSON, unsafe": lambda lm, folder: in_json(lm, folder, allow_unsafe_lm_state=True),
    "pickled state": in_pickled_state,
    "whole program": whole,
    "state": lambda lm, _: BaseLM.load_state(lm.dump_state()),
    "state, unsafe": lambda lm, _: BaseLM.load_state(
        json.loads(json.dumps(lm.dump_state())), allow_custom_lm_class=True
    ),
    "pickle": lambda lm, _: pickle.loads(pickle.dumps(lm)),
    "cloudpickle": lambda lm, _: pickle.loads(cloudpickle.dumps(lm)),
}
each_way = pytest.mark.parametrize("way", WAYS)


@contextmanager
def pool(server: FakeServer, name: str, *models: str, **settings: Any) -> Iterator[LMPool]:
    doors = [endpoint(server, model) for model in models or (MODEL,)]
    with LMPool(doors, name=name, **settings) as made:
        yield made


@each_way
def test_an_lm_that_is_loaded_beside_its_pool_is_answered_by_it(way: str, tmp_path: Path) -> None:
    with FakeServer("hello") as server, pool(server, "other"), pool(server, "mine") as mine, pool(server, "another"):
        lm = mine.lm(cache=False, temperature=0.5, max_tokens=7, timeout=30, launch_kwargs={"a": 1})
        loaded = WAYS[way](lm, tmp_path)
        assert type(loaded) is PooledLM
        assert loaded("hi") == ["hello"]
        assert mine.costs()["total"]["calls"] == 1
        assert (loaded.cache, loaded.kwargs, loaded.launch_kwargs) == (False, lm.kwargs, {"a": 1})
        assert loaded.dump_state() == lm.dump_state(), "it can be saved again"


@each_way
def test_where_its_pool_is_not_a_plain_lm_of_the_model_is_loaded(
    way: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with FakeServer("hello") as server:
        with pool(server, "gone") as gone:
            lm = gone.lm(cache=False, max_tokens=7)
        loaded = WAYS[way](lm, tmp_path)
        assert type(loaded) is dspy.LM
        assert (loaded.model, loaded.num_retries, loaded.kwargs["max_tokens"]) == (MODEL, 3, 7)
        assert loaded.copy(api_key=KEY, api_base=server.url)("hi") == ["hello"]
        assert "the LM 'openai/fake' was saved with the LM pool 'gone', which is not here" in caplog.text


@each_way
def test_no_file_holds_a_key_or_an_address(way: str, tmp_path: Path) -> None:
    with FakeServer("hello") as server, pool(server, "keyed") as keyed:
        WAYS[way](keyed.lm(), tmp_path)
        files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        files += [pickle.dumps(keyed.lm()), json.dumps(keyed.lm().dump_state()).encode()]
        assert not [data for data in files if KEY.encode() in data or server.url.encode() in data]


def test_a_pickle_holds_what_the_lm_remembers_and_its_callbacks() -> None:
    with FakeServer("hello") as server, pool(server, "kept") as kept:
        lm = kept.lm(cache=False, callbacks=[len])
        lm("hi")
        loaded = pickle.loads(pickle.dumps(lm))
        assert [entry["outputs"] for entry in loaded.history] == [["hello"]]
        assert loaded.callbacks == [len]
        assert kept.lm().engine is not lm.engine


def test_a_deep_copy_is_of_the_same_pool_and_remembers_the_same_calls() -> None:
    with FakeServer("hello") as server, pool(server, "copied") as copied, pool(server, "copied"):
        lm = copied.lm(cache=False)
        lm("hi")
        again = copy.deepcopy(lm)
        assert again.engine is lm.engine
        assert [entry["uuid"] for entry in again.history] == [entry["uuid"] for entry in lm.history]
        assert again.history is not lm.history


def test_of_pools_of_one_name_the_one_that_runs_is_taken() -> None:
    with FakeServer("hello") as server:
        waiting = LMPool([endpoint(server)], name="twice")
        with pool(server, "twice") as running:
            loaded = pickle.loads(pickle.dumps(waiting.lm(cache=False)))
            loaded("hi")
            assert running.costs()["total"]["calls"] == 1


def test_a_tuned_model_is_loaded_for_the_endpoint_that_had_it_and_one_of_another_provider_is_not() -> None:
    with FakeServer("hello") as server, pool(server, "tuned") as tuned:
        assert type(BaseLM.load_state(tuned.lm().copy(model="openai/tuned").dump_state())) is PooledLM
        elsewhere = BaseLM.load_state(tuned.lm().copy(model="anthropic/claude").dump_state())
        assert (type(elsewhere), elsewhere.model) == (dspy.LM, "anthropic/claude")


def test_a_vote_is_loaded_as_the_same_vote_and_where_it_cannot_be_as_the_first_model(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with FakeServer("hello") as server:
        with pool(server, "voting", "openai/one", "openai/two", "openai/three") as voting:
            plain = voting.vote(["openai/one", "openai/two"], quorum=2, cache=False)
            best = voting.vote(combine=Best(score=lambda request, answer: 1.0), name="best", cache=False)
            for vote, asked in ((plain, 2), (best, 3)):
                before = len(server.requests)
                loaded = BaseLM.load_state(vote.dump_state())
                assert (loaded.model, loaded("hi")) == (vote.model, ["hello"])
                assert len(server.requests) - before == asked
            states = plain.dump_state(), best.dump_state()
        with pool(server, "voting", "openai/two", "openai/one"):
            again, other = (BaseLM.load_state(state) for state in states)
            assert again.model == "vote/majority/2of/openai/one+openai/two"
            assert (type(other), other.model) == (dspy.LM, "openai/one")
            assert "which has no such model or vote" in caplog.text


SCRIPT = """
import sys, dspy
path, pool_is_there, url = sys.argv[1:]
program = dspy.Predict("question -> answer")
if pool_is_there == "yes":
    from promptside import LMPool, Endpoint
    with LMPool(Endpoint("openai/fake", api_key="k", api_base=url), name="far") as pool:
        program.load(path)
        print(type(program.lm).__name__, program.lm("hi"), pool.costs()["total"]["calls"])
else:
    program.load(path)
    lm = program.lm.copy(api_key="k", api_base=url)
    print(type(lm).__name__, lm("hi"), "promptside" in sys.modules)
"""


@pytest.mark.parametrize(("there", "said"), [("yes", "PooledLM ['hello'] 1"), ("no", "LM ['hello'] False")])
def test_in_another_process_it_is_of_the_pool_there_or_plain(there: str, said: str, tmp_path: Path) -> None:
    with FakeServer("hello") as server, pool(server, "far") as far:
        path = tmp_path / "program.json"
        program_with(far.lm(cache=False)).save(path)
        arguments = [sys.executable, "-c", SCRIPT, str(path), there, server.url]
        ran = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert ran.stdout.strip() == said, ran.stderr


async def test_an_embedder_that_is_loaded_beside_its_pool_is_of_it() -> None:
    with FakeServer("hello") as server:
        async with LMPool(endpoint(server, "openai/embed"), name="vectors") as vectors:
            loaded = pickle.loads(cloudpickle.dumps(vectors.embedder(caching=False)))
            assert (await loaded.acall(["a", "b"])).shape[0] == 2
            assert vectors.costs()["total"]["calls"] == 1
        del vectors
        assert isinstance(loaded, dspy.Embedder)


def test_dspy_loads_lms_of_other_kinds_as_before() -> None:
    class Mine(dspy.LM):  # type: ignore[misc]
        pass

    LMPool(Endpoint("openai/fake"), name="hooked")
    plain = dspy.LM("openai/gpt-4o-mini", temperature=0.3)
    loaded = BaseLM.load_state(plain.dump_state())
    assert (type(loaded), loaded.kwargs) == (dspy.LM, plain.kwargs)
    assert type(dspy.LM.load_state(plain.dump_state())) is dspy.LM
    assert type(Mine.load_state({"model": "openai/gpt-4o-mini"})) is Mine
    with pytest.raises(ValueError, match="Refusing to import custom serialized LM class"):
        BaseLM.load_state(Mine("openai/gpt-4o-mini").dump_state())
