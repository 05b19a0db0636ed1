"""The twins: for every public name of DSPy that a program can use, cases that use it, each run plainly and hosted.

`TWINS` has the cases that are not among `tests.support.module_cases`; `COVERED` says which cases use which name, and
`APART` which names need none, and why. `test_twins.py` runs them, and fails when DSPy has a name that is in neither.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import numpy as np
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy.evaluate import CompleteAndGrounded, SemanticF1
from dspy.experimental import Choice, Citations, Document, Noul, Score
from dspy.lm15 import ContextLengthError, RateLimitError
from dspy.utils.callback import BaseCallback

from promptside.programs import ChatAdapter
from promptside.testing import MockLM
from tests.support.comparison import Case, script
from tests.support.module_cases import (
    BOTH,
    CASES,
    DONE,
    QA,
    WHY,
    Both,
    Interpreter,
    Sync,
    Triage,
    Who,
    awaits,
    calls,
    deprecated,
    longer,
    search,
    search_later,
    submit,
    use,
)

PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
SOUND = {"data": "UklGRiQAAABXQVZFZm10IBAAAAABAAEA", "audio_format": "wav"}

ADAPTERS: dict[str, Callable[[], dspy.Adapter]] = {
    "ChatAdapter": dspy.ChatAdapter,
    "ChatAdapter, no fallback": lambda: dspy.ChatAdapter(use_json_adapter_fallback=False),
    "ChatAdapter, native tools": lambda: dspy.ChatAdapter(use_native_function_calling=True),
    "ChatAdapter, promptside's": ChatAdapter,
    "JSONAdapter": dspy.JSONAdapter,
    "XMLAdapter": dspy.XMLAdapter,
    "BAMLAdapter": BAMLAdapter,
    "TwoStepAdapter": lambda: dspy.TwoStepAdapter(MockLM("extracted").lm()),
}


class RecordingInterpreter(dspy.LocalInterpreter):  # type: ignore[misc]
    """DSPy's interpreter in a process of its own, which tells callbacks what it does."""


class Shouting(dspy.ChatAdapter):  # type: ignore[misc]
    """An adapter of the user's."""

    def format(self, *args: Any, **kwargs: Any) -> Any:
        return [*super().format(*args, **kwargs), {"role": "user", "content": "Shout."}]

    def parse(self, signature: Any, completion: str) -> Any:
        return {name: value.upper() for name, value in super().parse(signature, completion).items()}


class Retrieving(dspy.Module):  # type: ignore[misc]
    def __init__(self, retrieve: Any) -> None:
        super().__init__()
        self.retrieve = retrieve
        self.predict = dspy.Predict("passages, question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        found = self.retrieve(question)
        return self.predict(passages=getattr(found, "passages", found), question=question)


def embed(texts: list[str]) -> Any:
    return np.array([[float(len(text)), 1.0] for text in texts], dtype=np.float32)


def by_setting(query: str, k: int, **_: Any) -> list[Any]:
    return [dspy.Example(long_text=f"{query} {number}") for number in range(k)]


def with_majority(self: Any, **inputs: Any) -> dspy.Prediction:
    return dspy.majority([self.predict(**inputs) for _ in range(3)])


def with_ensemble(self: Any, **inputs: Any) -> dspy.Prediction:
    return dspy.Ensemble(reduce_fn=dspy.majority).compile([self.both, self.sync, self.predict])(**inputs)


def with_record_of_trace(self: Any, **inputs: Any) -> dspy.Prediction:
    devset = [dspy.Example(question=f"{n}", answer="yes").with_inputs("question") for n in range(2)]
    data = dspy.bootstrap_trace_data(self.sync, devset, metric=lambda *_: 1.0, num_threads=1)
    return dspy.Prediction(traces=[[len(each["trace"]), each["score"]] for each in data])


def with_saved_embeddings(self: Any, **inputs: Any) -> dspy.Prediction:
    with tempfile.TemporaryDirectory() as folder:
        self.retrieve[0].save(str(Path(folder) / "index"))
        loaded = dspy.Embeddings.from_saved(str(Path(folder) / "index"), embed)
    return dspy.Prediction(passages=loaded("four").passages)


def with_failing_part(self: Any, **inputs: Any) -> dspy.Prediction:
    try:
        self.predict(**inputs)
    except dspy.LMRateLimitError as error:
        return dspy.Prediction(error=(type(error).__name__, dspy.is_retryable_lm_error(error)))
    raise AssertionError


def with_context_in_threads(self: Any, **inputs: Any) -> dspy.Prediction:
    pairs = [(self.both, {"question": f"{number}"}) for number in range(4)]
    with dspy.context(adapter=dspy.JSONAdapter()):
        found = dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs)
    return dspy.Prediction(answers=[each.answer for each in found])


def with_tool(self: Any, **inputs: Any) -> dspy.Prediction:
    tool = dspy.Tool(lambda query: self.predict(question=query).answer, name="ask", desc="Ask.")
    return dspy.Prediction(answer=tool(query="what?"), args=tool.args)


async def with_awaited_tool(self: Any, **inputs: Any) -> dspy.Prediction:
    async def ask(query: str) -> str:
        """Ask."""
        return str((await self.predict.acall(question=query)).answer)

    return dspy.Prediction(answer=await dspy.Tool(ask).acall(query="what?"))


async def with_status_messages(self: Any, **inputs: Any) -> dspy.Prediction:
    class Status(dspy.streaming.StatusMessageProvider):  # type: ignore[misc]
        def module_start_status_message(self, instance: Any, inputs: Any) -> str:
            return f"module {type(instance).__name__}"

        def lm_start_status_message(self, instance: Any, inputs: Any) -> str:
            return "lm"

    stream = dspy.streamify(self.both, status_message_provider=Status(), is_async_program=True)
    found = [chunk async for chunk in stream(**inputs)]
    return dspy.Prediction(
        messages=[chunk.message for chunk in found if isinstance(chunk, dspy.streaming.StatusMessage)],
        answer=found[-1].answer,
    )


def with_instances_callbacks(self: Any, **inputs: Any) -> dspy.Prediction:
    told: list[str] = []

    class Own(BaseCallback):  # type: ignore[misc]
        def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            told.append(type(instance).__name__)

        def on_lm_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
            told.append(f"{len(outputs)} outputs")

    self.both.second.callbacks.append(Own())
    self.both(**inputs)
    self.both.second.callbacks.clear()
    lm = dspy.settings.lm.copy()
    lm.callbacks = [Own()]
    self.predict(**inputs, lm=lm)
    return dspy.Prediction(told=told)


def with_mapped_predictors(self: Any, **inputs: Any) -> dspy.Prediction:
    self.both.map_named_predictors(lambda predictor: predictor)
    self.both.set_lm(own := dspy.settings.lm.copy(rollout_id=7, temperature=1.0))
    found = self.both(**inputs)
    same = self.both.get_lm() is own
    self.both.set_lm(None)
    return dspy.Prediction(answer=found.answer, same=same, names=[name for name, _ in self.both.named_predictors()])


class Flexible(dspy.Module):  # type: ignore[misc]
    """What Python's own syntax asks of an object."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [dspy.Predict(QA), dspy.Predict(QA)]

    def __len__(self) -> int:
        return len(self.parts)

    def __bool__(self) -> bool:
        return False

    def __iter__(self) -> Any:
        return iter(self.parts)

    def __getitem__(self, index: int) -> dspy.Predict:
        return self.parts[index]

    def __contains__(self, part: object) -> bool:
        return any(each is part for each in self.parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Flexible)

    def __hash__(self) -> int:
        return 7

    def __enter__(self) -> Any:
        return self.parts[0]

    def __exit__(self, *error: object) -> None:
        """Nothing."""

    def forward(self, question: str) -> dspy.Prediction:
        with self as first:
            answers = [first(question=question).answer, *(part(question=question).answer for part in self)]
        return dspy.Prediction(
            answers=[*answers, self[1](question=question).answer], seen=[len(self), self == Flexible(), hash(self)]
        )


class Contained(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.inner = Flexible()

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(one=self.inner(question=question), seen=[len(self.inner), self.inner[0] in self.inner])


class Positional(dspy.Module):  # type: ignore[misc]
    """Takes its input by position, and hands it on so."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = calls(lambda self, **inputs: self.predict(**inputs))()
        self.inner.__class__ = type(
            "ByPosition", (type(self.inner),), {"forward": lambda self, question: self.predict(question=question)}
        )

    def forward(self, question: str) -> dspy.Prediction:
        return self.inner(question)


def typed(fields: str, **types: Any) -> Callable[[], dspy.Module]:
    return lambda: dspy.Predict(dspy.Signature(fields, "Answer.", custom_types=types))


def deciding(kind: Any) -> Callable[[], dspy.Module]:
    fields = {"question": (str, dspy.InputField()), "decision": (kind, dspy.OutputField(desc="Is it so?"))}
    return lambda: dspy.Predict(dspy.Signature(fields, "Decide."))


class Writing(dspy.Signature):  # type: ignore[misc]
    """Write it."""

    question: str = dspy.InputField()
    code: dspy.Code = dspy.OutputField()


class Citing(dspy.BaseLM):  # type: ignore[misc]
    """An LM of the user's, in the old form, which takes documents and cites them."""

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        cited = {"citations": [[{**each, "document_title": "a"} for each in CITED]]}
        message = SimpleNamespace(content="[[ ## answer ## ]]\nyes", provider_specific_fields=cited)
        return SimpleNamespace(choices=[SimpleNamespace(message=message)], usage={}, model=str(messages))

    async def aforward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        return self.forward(prompt, messages, **kwargs)


MESSAGES = [{"question": "one?", "answer": "1"}, {"question": "two?", "answer": "2"}]
CALLS = {"tool_calls": [{"name": "search", "args": {"query": "it"}}]}
CITED = [{"type": "text", "cited_text": "a", "document_index": 0, "start_char_index": 0, "end_char_index": 1}]

TYPES: dict[str, Case] = {
    "Image": Case(
        source=typed("picture: dspy.Image -> answer"),
        calls=[{"picture": dspy.Image(PIXEL)}, {"picture": dspy.Image("https://x.org/a.png")}],
    ),
    "Image, a list": Case(
        source=typed("pictures: list[dspy.Image] -> answer"), calls=[{"pictures": [dspy.Image(PIXEL)] * 2}]
    ),
    "Audio": Case(source=typed("sound: dspy.Audio -> answer"), calls=[{"sound": dspy.Audio(**SOUND)}]),
    "File": Case(
        source=typed("file: dspy.File -> answer"),
        calls=[{"file": dspy.File(file_data="data:application/pdf;base64,QQ==")}],
    ),
    "Document": Case(
        source=typed("documents: list[Document], question -> answer", Document=Document),
        calls=[{**WHY, "documents": [Document(data="a text", title="a")]}],
        settings=lambda: {"lm": Citing("mine")},
    ),
    "Citations": Case(
        source=typed(
            "documents: list[Document], question -> answer, citations: Citations",
            Document=Document,
            Citations=Citations,
        ),
        calls=[{**WHY, "documents": [Document(data="a text", title="a")]}],
        settings=lambda: {"lm": Citing("anthropic/mine")},
    ),
    "History": Case(
        source=typed("history: dspy.History, question -> answer"),
        calls=[{**WHY, "history": dspy.History(messages=MESSAGES)}],
    ),
    "Code": Case(
        source=lambda: dspy.Predict(Writing),
        answers=lambda: {"default": {"code": "```python\nx = 1\n```"}},
    ),
    "Reasoning": Case(
        source=typed("question -> reasoning: dspy.Reasoning, answer"),
        answers=lambda: {"default": {"reasoning": "so", "answer": "yes"}},
    ),
    "Tool and ToolCalls": Case(
        source=typed("question, tools: list[dspy.Tool] -> calls: dspy.ToolCalls"),
        answers=lambda: {"default": {"calls": CALLS}},
        calls=[{**WHY, "tools": [dspy.Tool(search)]}],
    ),
    "ToolCallResults": Case(
        source=lambda: dspy.ReActV2(QA, tools=[search, search_later]),
        answers=script(submit("search", query="it"), submit("search_later", query="it"), submit("submit", answer="42")),
        only="awaited",
    ),
    "Noul": Case(source=deciding(Noul), answers=lambda: {"default": {"decision": {"noul": 0.25}}}),
    "Choice": Case(
        source=deciding(Choice[("bug", "A bug."), ("wish", "A wish.")]),
        answers=lambda: {"default": {"decision": {"probabilities": {"bug": 0.9, "wish": 0.1}, "confidence": 0.5}}},
    ),
    "Score": Case(
        source=deciding(Score["poor", "fair", "good"]),
        answers=lambda: {"default": {"decision": {"probabilities": {"0": 0.1, "1": 0.2, "2": 0.7}, "confidence": 0.5}}},
    ),
}
"""Values of DSPy's own types, in and out."""


def shaped(make: Callable[[], dspy.Adapter], source: Callable[[], dspy.Module], **more: Any) -> Case:
    return Case(source=source, settings=lambda: {"adapter": make()}, **more)


PERSON = {"person": {"name": "Ada", "age": 36}}
TRIAGED = {"kind": "bug", "urgency": 4, "tags": ["a", "b"]}

TWINS: dict[str, Case] = {
    # adapters by modules
    **{f"{name} with Predict": shaped(make, lambda: dspy.Predict(QA)) for name, make in ADAPTERS.items()},
    **{f"{name} with a pipeline": shaped(make, Both) for name, make in ADAPTERS.items()},
    **{f"{name} with a synchronous pipeline": shaped(make, Sync) for name, make in ADAPTERS.items()},
    **{
        f"{name} with a typed output": shaped(
            make, lambda: dspy.Predict(Who), answers=script(*[PERSON] * 3), calls=[{"text": "Ada, 36"}]
        )
        for name, make in ADAPTERS.items()
        if name != "TwoStepAdapter"
    },
    **{
        f"{name} with demos and an answer that cannot be parsed": shaped(
            make,
            lambda: dspy.Predict(Triage),
            answers=script({"kind": "neither", "urgency": "x", "tags": "y"}, TRIAGED),
            calls=[{"message": "?", "demos": [dspy.Example(message="a", **TRIAGED)]}],
        )
        for name, make in ADAPTERS.items()
        if name not in ("TwoStepAdapter", "ChatAdapter, no fallback")
    },
    **{
        f"{name} with an agent": shaped(
            make, lambda: dspy.ReAct(QA, tools=[search]), answers=script(use("search", query="it"), use("finish"), DONE)
        )
        for name, make in ADAPTERS.items()
        if name not in ("TwoStepAdapter", "BAMLAdapter")  # which the mock does not follow
    },
    "an adapter of the user's": shaped(Shouting, Both),
    # modules
    "majority": Case(source=calls(with_majority), answers=script("a", "b", "b")),
    "Ensemble": Case(source=calls(with_ensemble, **BOTH), below=False),
    "SemanticF1": Case(
        source=lambda: SemanticF1(threshold=0.5),
        answers=lambda: {"default": {"reasoning": "so", "precision": 0.5, "recall": 0.5}},
        calls=[{"example": dspy.Example(question="?", response="a"), "pred": dspy.Prediction(response="b")}],
    ),
    "CompleteAndGrounded": Case(
        source=CompleteAndGrounded,
        answers=lambda: {
            "default": {
                name: "so" if name not in ("completeness", "groundedness") else 0.5
                for name in (
                    "reasoning",
                    "ground_truth_key_ideas",
                    "system_response_key_ideas",
                    "discussion",
                    "completeness",
                    "system_response_claims",
                    "groundedness",
                )
            }
        },
        calls=[
            {"example": dspy.Example(question="?", response="a"), "pred": dspy.Prediction(response="b", context="c")}
        ],
    ),
    "Flex": Case(source=lambda: dspy.Flex(QA, interpreter_factory=RecordingInterpreter), below=False),
    "Retrieve": Case(source=lambda: Retrieving(dspy.Retrieve(k=2)), settings=lambda: {"rm": by_setting}),
    "Embeddings": Case(source=lambda: Retrieving(dspy.Embeddings(["a", "four"], embed, k=1))),
    "EmbeddingsWithScores": Case(source=lambda: Retrieving(dspy.EmbeddingsWithScores(["a", "four"], embed, k=1))),
    "Embeddings, saved": Case(
        source=calls(with_saved_embeddings, retrieve=lambda: [dspy.Embeddings(["a", "four"], embed, k=1)]), below=False
    ),
    "bootstrap_trace_data": Case(source=calls(with_record_of_trace, sync=Sync), below=False, ordered=False),
    "Refine, in a module": Case(
        source=calls(
            lambda self, **inputs: self.refine(**inputs),
            refine=lambda: dspy.Refine(dspy.Predict(QA), N=2, reward_fn=longer, threshold=9.0),
        ),
        answers=script("a", {"discussion": "hm", "advice": {"self": "say more"}}, "abc"),
        below=False,
    ),
    "ProgramOfThought, in a module": Case(
        source=deprecated(
            calls(
                lambda self, **inputs: self.code(Interpreter(), **inputs),
                code=lambda: dspy.ProgramOfThought(QA, interpreter_factory=Interpreter),
            )
        ),
        answers=script(
            {"reasoning": "y", "generated_code": "SUBMIT({'answer': 42})"}, {"reasoning": "z", "answer": "42"}
        ),
    ),
    "KNN, in a module": CASES["KNN"],
    # calls
    "positional arguments": Case(source=Positional),
    "dunder methods": Case(source=Flexible),
    "dunder methods of a part": Case(source=Contained),
    "a tool": Case(source=calls(with_tool)),
    "an awaited tool": Case(source=awaits(with_awaited_tool), only="awaited"),
    "status messages": Case(source=awaits(with_status_messages, **BOTH), only="awaited"),
    "callbacks of instances": Case(source=calls(with_instances_callbacks, **BOTH)),
    "predictors mapped and their LM set": Case(source=calls(with_mapped_predictors, **BOTH)),
    "an error of an LM, caught": Case(source=calls(with_failing_part), answers=script(RateLimitError("slow"))),
    "a context too long in an agent": Case(
        source=lambda: dspy.ReAct(QA, tools=[search]),
        answers=script(use("search", query="1"), ContextLengthError("long"), use("finish"), DONE),
    ),
    "settings over threads": Case(source=calls(with_context_in_threads, **BOTH), ordered=False),
    "tools' errors in a pipeline": CASES["ReAct, a failing tool"],
    **TYPES,
}

COVERED: dict[str, tuple[str, ...]] = {
    # modules
    "Predict": ("predict", "predict, settings by call", "predict, n completions"),
    "ChainOfThought": ("chain of thought", "chain of thought, a class"),
    "ReAct": ("ReAct", "ReAct, an asynchronous tool", "ReAct in a module"),
    "ReActV2": ("ReActV2", "ReActV2, forced"),
    "BestOfN": ("BestOfN", "BestOfN of a pipeline", "BestOfN in a module"),
    "Refine": ("Refine", "Refine of a pipeline", "Refine, in a module"),
    "MultiChainComparison": ("MultiChainComparison",),
    "ProgramOfThought": ("ProgramOfThought", "ProgramOfThought, in a module"),
    "CodeAct": ("CodeAct",),
    "RLM": ("RLM", "RLM in a module"),
    "Flex": ("Flex",),
    "Module": ("a synchronous pipeline", "an asynchronous pipeline"),
    "BaseModule": ("a synchronous pipeline",),
    "SemanticF1": ("SemanticF1",),
    "CompleteAndGrounded": ("CompleteAndGrounded",),
    # what is called like one
    "Parallel": ("Parallel", "settings over threads"),
    "Evaluate": ("Evaluate",),
    "EvaluationResult": ("Evaluate",),
    "KNN": ("KNN",),
    "majority": ("majority",),
    "Retrieve": ("Retrieve",),
    "Embeddings": ("Embeddings", "Embeddings, saved"),
    "EmbeddingsWithScores": ("EmbeddingsWithScores",),
    "asyncify": ("asyncify",),
    "syncify": ("syncify",),
    "streamify": ("streamify in a call", "status messages"),
    "context": ("settings in a call", "an LM in a call"),
    "track_usage": ("usage in a call",),
    "load": ("files in a call",),
    "bootstrap_trace_data": ("bootstrap_trace_data",),
    # optimizers that make a program of a program
    "LabeledFewShot": ("LabeledFewShot",),
    "BootstrapFewShot": ("BootstrapFewShot",),
    "KNNFewShot": ("KNNFewShot",),
    "Ensemble": ("Ensemble",),
    # adapters
    "Adapter": ("an adapter of the user's",),
    **{name: (f"{name} with Predict", f"{name} with a pipeline") for name in ADAPTERS if "," not in name},
    # types
    "Type": ("Image",),
    "Tool": ("Tool and ToolCalls", "a tool", "an awaited tool"),
    "ToolCalls": ("Tool and ToolCalls",),
    **{name: (name,) for name in TYPES if name not in ("Tool and ToolCalls", "Image, a list")},
    # values
    "Signature": ("predict, a signature class",),
    "SignatureMeta": ("predict, a signature class",),
    "InputField": ("predict, a signature class",),
    "OutputField": ("predict, a signature class",),
    "Example": ("demos",),
    "Prediction": ("predict",),
    "Completions": ("predict, n completions",),
    "CodeInterpreter": ("ProgramOfThought", "RLM"),
    "FinalOutput": ("ProgramOfThought", "RLM"),
    "CodeExecutionError": ("ProgramOfThought",),
    # errors
    "AdapterParseError": ("an answer that cannot be parsed",),
    "ContextWindowExceededError": ("a context too long", "a context too long in an agent"),
    "LMRateLimitError": ("a rate limit", "an error of an LM, caught"),
    "is_retryable_lm_error": ("an error of an LM, caught",),
}
"""By the public name, the cases that use it."""

HOOKS: dict[str, str] = {
    "module": "predict",
    "lm": "predict",
    "adapter_format": "predict",
    "adapter_parse": "predict",
    "tool": "ReAct",
    "evaluate": "Evaluate",
    "compile": "BootstrapFewShot",
    "interpreter_execute": "a recording interpreter",
    "interpreter_tool_call": "a recording interpreter",
    "interpreter_startup": "a recording interpreter",
    "interpreter_shutdown": "a recording interpreter",
}
"""By the callback hook, a case in which it fires."""

APART: dict[str, str] = {
    **dict.fromkeys(
        ("BaseLM", "LM", "Embedder", "Provider", "TrainingJob", "lm15", "TypeSafe"), "clients: compared in tests/pools"
    ),
    **dict.fromkeys(
        (
            "AvatarOptimizer",
            "BetterTogether",
            "BootstrapFewShotWithOptuna",
            "BootstrapFewShotWithRandomSearch",
            "BootstrapFinetune",
            "BootstrapRS",
            "COPRO",
            "GEPA",
            "InferRules",
            "MIPROv2",
            "SIMBA",
            "ReAnchor",
        ),
        "optimizers: they get a plain copy of a program",
    ),
    **dict.fromkeys(
        (
            "CodeInterpreterError",
            "DSPyError",
            "LMAuthError",
            "LMBillingError",
            "LMCollectionLimitError",
            "LMConfigurationError",
            "LMError",
            "LMInvalidRequestError",
            "LMLockTimeoutError",
            "LMNotConfiguredError",
            "LMProviderError",
            "LMServerError",
            "LMStreamAssemblyError",
            "LMTimeoutError",
            "LMTransportError",
            "LMUnexpectedError",
            "LMUnsupportedFeatureError",
            "LMUnsupportedModelError",
        ),
        "errors: they pass through as any does",
    ),
    **dict.fromkeys(
        ("LocalInterpreter", "PythonInterpreter", "SandboxSerializable", "resolve_interpreter_factory"), "sandboxes"
    ),
    **dict.fromkeys(
        (
            "cache",
            "configure",
            "configure_cache",
            "configure_dspy_loggers",
            "disable_litellm_logging",
            "disable_logging",
            "enable_litellm_logging",
            "enable_logging",
            "load_settings",
            "settings",
            "inspect_history",
        ),
        "of the process",
    ),
    **dict.fromkeys(
        ("OldField", "OldInputField", "OldOutputField", "ensure_signature", "infer_prefix", "make_signature"),
        "they make signatures",
    ),
    "ColBERTv2": "asks a server of its own",
}
"""By the public name, why it has no twin."""


TWINS["a recording interpreter"] = Case(
    source=lambda: dspy.RLM(QA, interpreter_factory=RecordingInterpreter, tools=[search]),
    answers=script(
        {"reasoning": "look", "code": "print(search(query='it'))"}, {"reasoning": "done", "code": "SUBMIT(answer='42')"}
    ),
)
