"""Pipelines are checked by field names when they are built: where these come from, and each thing that is wrong."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypedDict

import dspy
import pydantic
import pytest

from promptside.errors import InvalidChildSpec, PipelineError
from promptside.programs import Program
from promptside.programs.pipeline.fields import fields_of_module
from promptside.programs.pipeline.groups import branch, parallel
from promptside.programs.pipeline.pipeline import Pipeline
from promptside.programs.pipeline.stage import Stage, stage
from tests.support.modules import lm


class Passages(TypedDict):
    context: list[str]
    score: float


@dataclasses.dataclass
class Draft:
    draft: str


class Verdict(pydantic.BaseModel):
    verdict: bool


class Optional(dspy.Signature):
    """Answer a question."""

    question: str = dspy.InputField()
    hint: str | None = dspy.InputField()
    answer: str = dspy.OutputField()


class Retrieve(dspy.Module):  # type: ignore[misc]
    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1

    def forward(self, question: str, k: int = 3) -> dspy.Prediction:
        return dspy.Prediction(context=[question] * k)


class Typed(dspy.Module):  # type: ignore[misc]
    async def aforward(self, question: str) -> Passages:
        return {"context": [question], "score": 1.0}


class Compare(dspy.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("attempts, question -> answer")

    def forward(self, completions: list[str], **inputs: Any) -> dspy.Prediction:
        return self.predict(attempts=completions, **inputs)


class Narrow(dspy.ChainOfThought):  # type: ignore[misc]
    """Overrides one of the two methods that it inherits."""

    def forward(self, question: str, style: str = "plain") -> dspy.Prediction:
        return super().forward(question=f"{question} {style}")


def test_the_fields_of_a_module_are_those_of_the_method_that_stands_nearest_to_its_class() -> None:
    for module in (Narrow, Narrow("question -> answer")):
        fields = fields_of_module(module)
        assert (fields.required, fields.optional) == (("question",), ("style",))


def search(question: str) -> list[str]:
    return [question]


def typed_search(question: str, k: int = 3) -> Passages:
    return {"context": [question] * k, "score": 1.0}


async def write(context: list[str], *, tone: str = "plain") -> Draft:
    return Draft(draft=f"{tone}: {context}")


def judge(draft: str) -> Verdict:
    return Verdict(verdict=bool(draft))


def log(draft: str) -> None:
    pass


def puzzling(draft: str) -> Unknown:  # type: ignore[name-defined]  # noqa: F821
    return draft


def fields(work: object) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    step = work if isinstance(work, Stage) else stage(work)
    return step.required, step.optional, step.outputs


QA = "question -> answer"
QA_MODULE = dspy.Predict(QA)


@pytest.mark.parametrize(
    ("work", "required", "optional", "outputs"),
    [
        (QA, ("question",), (), ("answer",)),
        (Optional, ("question",), ("hint",), ("answer",)),
        (dspy.Predict(QA), ("question",), (), ("answer",)),
        (functools.partial(dspy.Predict, QA), ("question",), (), ("answer",)),
        (dspy.ChainOfThought(QA), ("question",), (), ("reasoning", "answer")),
        (dspy.ReAct(QA, tools=[search]), ("question",), (), ("answer",)),
        (dspy.BestOfN(dspy.ChainOfThought(QA), 2, len, 1.0), ("question",), (), ("reasoning", "answer")),
        (Program(lambda: dspy.Predict(QA), name="qa"), ("question",), (), ("answer",)),
        (Typed, ("question",), (), ("context", "score")),
        (Typed(), ("question",), (), ("context", "score")),
        (stage(Retrieve, outputs="context"), ("question",), ("k",), ("context",)),
        (stage(Retrieve, inputs="question, k", outputs="context"), ("question", "k"), (), ("context",)),
        (typed_search, ("question",), ("k",), ("context", "score")),
        (functools.partial(typed_search, k=2), ("question",), ("k",), ("context", "score")),
        (write, ("context",), ("tone",), ("draft",)),
        (judge, ("draft",), (), ("verdict",)),
        (stage(write, outputs={"draft": "text"}), ("context",), ("tone",), ("text",)),
        (log, ("draft",), (), ()),
        (stage(search, outputs="context"), ("question",), (), ("context",)),
        (stage(lambda **all: all, inputs="a, b", outputs=["c"]), ("a", "b"), (), ("c",)),
        (stage(typed_search, inputs={"question": "query"}), ("query",), ("k",), ("context", "score")),
        (stage(typed_search, outputs={"context": "passages"}), ("question",), ("k",), ("passages", "score")),
        (stage(dspy.ChainOfThought(QA), outputs="answer"), ("question",), (), ("answer",)),
        (stage(dspy.ReAct(QA, tools=[]), outputs="answer, trajectory"), ("question",), (), ("answer", "trajectory")),
    ],
)  # fmt: skip
def test_a_stage_has_the_fields_of_what_it_runs(
    work: object, required: tuple[str, ...], optional: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    assert fields(work) == (required, optional, outputs)


def test_a_class_is_made_only_where_its_fields_cannot_be_read_without() -> None:
    before = Retrieve.made
    stage(Retrieve, outputs="context")
    assert Retrieve.made == before


@pytest.mark.parametrize(
    ("work", "options", "message"),
    [
        (search, {}, "'search' does not tell which fields it gives; declare them: stage(..., outputs='a, b')"),
        (Retrieve(), {}, "'Retrieve' does not tell which fields it gives"),
        (puzzling, {}, "'puzzling' does not tell which fields it gives"),
        (Compare(), {}, "'Compare' does not tell which fields it takes"),
        (dspy.Module(), {}, "'Module' does not tell which fields it takes"),
        (dict, {}, "'dict' does not tell which fields it takes"),
        (lambda **all: all, {"outputs": "c"}, "'lambda' does not tell which fields it takes; declare them: stage("),
        (QA, {"outputs": "anser"}, "'answer' has no field 'anser' in its outputs; it gives answer; correct outputs="),
        (QA, {"inputs": "question, k"}, "'answer' has no field 'k' in its inputs; it takes question"),
        (QA, {"inputs": {"query": "question"}}, "'answer' has no field 'query' in its inputs"),
        (write, {"inputs": "tone"}, "'write' needs 'context'; add it to inputs="),
        (typed_search, {"outputs": {"context": "score"}}, "'typed_search' gives 'score' twice; give one another name"),
        (search, {"outputs": "context: str"}, "'search' has outputs=['context: str']; give names of fields"),
        (search, {"outputs": "context", "lm": lm("x")}, "'search' is nothing that takes lm=; leave it out, or give it"),
        (judge, {"restart": "transient"}, "'judge' is nothing that takes restart="),
        (Program(QA_MODULE, name="qa"), {"lm": lm("x")}, "'qa' is nothing that takes lm="),
        (42, {}, "'int' is 42; give a function, a dspy.Module or its class, a signature, a Program or a Pipeline"),
    ],
)  # fmt: skip
def test_a_stage_says_what_is_wrong_with_it_and_what_to_do(work: object, options: dict[str, Any], message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        stage(work, **options)
    assert message in str(caught.value)


@pytest.mark.parametrize("options", [{"name": "a/b"}, {"restart": "always"}, {"backoff": 3}])
def test_what_a_child_spec_refuses_is_refused_when_the_stage_is_made(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidChildSpec, match=next(iter(options)).replace("name", "id")):
        stage(QA, **options)


def test_fields_accumulate_by_name() -> None:
    pipeline = typed_search >> stage(write) >> judge >> log
    assert pipeline.required == ("question",)
    assert pipeline.optional == ("k",)
    assert pipeline.outputs == ("context", "score", "draft", "verdict")


def test_a_chain_is_the_same_however_it_is_put_together() -> None:
    a, b, c = stage(typed_search), stage(write), stage(judge)
    chains = [a >> b >> c, a >> (b >> c), Pipeline([a, b, c]), Pipeline(a >> b >> c), Pipeline([a >> b, c])]
    assert {chain._steps for chain in chains} == {(a, b, c)}


def test_a_field_that_a_stage_changes_flows_on_under_its_name() -> None:
    rerank = stage(lambda context: context, name="rerank", outputs="context")
    assert (stage(typed_search) >> rerank >> rerank >> write).outputs == ("context", "score", "draft")


def test_a_missing_field_is_an_error_when_the_pipeline_is_built() -> None:
    with pytest.raises(PipelineError) as caught:
        stage(search, outputs="passages") >> ("write", "context, question -> answer")
    assert (caught.value.stage, caught.value.field) == ("write", "context")
    assert str(caught.value) == (
        "'write' needs 'context', which nothing before it gives (there is question, passages); wire it, by "
        "stage(..., inputs={'context': ...}), or make it an input, by Pipeline(..., inputs='question, context')"
    )
    rag = stage(search, outputs="passages") >> stage("context, question -> answer", inputs={"context": "passages"})
    assert rag.outputs == ("passages", "answer")
    assert Pipeline([stage(search, outputs="passages"), "context, question -> answer"], inputs="question, context")


def test_a_field_that_would_be_lost_is_an_error_when_the_pipeline_is_built() -> None:
    with pytest.raises(PipelineError) as caught:
        Pipeline([("one", dspy.ChainOfThought("question -> query")), ("two", dspy.ChainOfThought("query -> answer"))])
    assert (caught.value.stage, caught.value.field) == ("two", "reasoning")
    message = str(caught.value)
    assert "gives 'reasoning', which is given by 'one' and would be lost before a stage has read it" in message
    assert "stage(..., outputs={'reasoning': ...})" in message


def test_an_input_that_nobody_takes_is_an_error_when_the_pipeline_is_built() -> None:
    with pytest.raises(
        PipelineError, match="'pipeline' has an input 'id' that no stage takes; leave it out of inputs="
    ):
        Pipeline([QA], inputs="question, id")
    with pytest.raises(
        PipelineError, match="'shout' gives 'text', which is an input of the pipeline and would be lost"
    ):
        Pipeline([QA, stage(lambda answer: answer, name="shout", outputs="text")], inputs="question, text")
    assert Pipeline([QA], inputs="question, id", outputs="id, answer").outputs == ("id", "answer")


def test_an_output_that_nobody_gives_is_an_error_when_the_pipeline_is_built() -> None:
    message = "'pipeline' has no field 'anser' for its outputs; correct outputs=; there is question, answer"
    with pytest.raises(PipelineError, match=message):
        Pipeline([QA], outputs="anser")


def test_a_field_that_may_lack_does_for_no_stage_that_needs_it() -> None:
    with pytest.raises(PipelineError, match="'more' needs 'k', which nothing before it gives"):
        Pipeline([typed_search, stage(lambda k: k, name="more", outputs="m")])
    assert Pipeline([typed_search, stage(lambda k: k, name="more", outputs="m")], inputs="question, k")
    assert Pipeline([typed_search, stage(lambda k=3: k, name="more", outputs="m")]).optional == ("k",)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lm": 5}, r"Pipeline: lm=5: give a dspy\.LM"),
        ({"content": 5}, r"Pipeline: content=5: give a Content\(\.\.\.\)"),
        ({"timeout": True}, "Pipeline: timeout=True: give seconds > 0"),
        ({"strategy": "all"}, "strategy='all': use one of one_for_one"),
    ],
)
def test_a_setting_that_is_not_valid_is_named_when_the_pipeline_is_built(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pipeline([QA], **wrong)


def test_names_and_stages_there_must_be() -> None:
    with pytest.raises(ValueError, match="Pipeline: name='a/b': give a non-empty text without /"):
        Pipeline([QA], name="a/b")
    with pytest.raises(
        PipelineError, match=r"'pipeline' has outputs=.*; name them; others than the stages' are given by"
    ):
        Pipeline([QA], outputs={"answer": "reply"})  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="has no stages"):
        Pipeline([])
    with pytest.raises(PipelineError, match="'qa' is the name of something else in this pipeline"):
        Pipeline([("qa", QA), ("qa", "answer -> verdict")])
    with pytest.raises(PipelineError, match="'calls' is the name of something else"):
        Pipeline([("calls", QA)])


def test_stages_of_one_default_name_are_numbered() -> None:
    pipeline = Pipeline([dspy.Predict(QA), dspy.Predict("answer -> b"), dspy.Predict("b -> c")])
    assert list(pipeline._parts) == ["Predict", "Predict-2", "Predict-3"]


def test_parallel_stages_see_the_same_fields_and_give_different_ones() -> None:
    both = parallel(typed_search, stage("question, hint -> answer"))
    assert (both.required, both.optional, both.outputs) == (
        ("question", "hint"),
        ("k",),
        ("context", "score", "answer"),
    )
    with pytest.raises(PipelineError) as caught:
        parallel(("one", QA), ("two", QA))
    assert (caught.value.stage, caught.value.field) == ("two", "answer")
    assert "gives 'answer', as 'one' does beside it; rename one: stage(..., outputs={'answer': ...})" in str(
        caught.value
    )


def test_the_cases_of_a_branch_give_the_same_fields() -> None:
    by_kind = branch("kind", {"a": QA, "b": "question, context -> answer"}, otherwise="hint -> answer")
    assert (by_kind.required, by_kind.outputs) == (("kind", "question", "context", "hint"), ("answer",))
    by_length = branch(lambda question, limit=40: len(question) < limit, {True: QA, False: Optional})
    assert (by_length.required, by_length.optional) == (("question",), ("hint", "limit"))
    with pytest.raises(PipelineError) as caught:
        branch("kind", {"short": QA, "long": ("careful", dspy.ChainOfThought(QA))})
    assert (caught.value.stage, caught.value.field) == ("careful", "reasoning")
    assert "and 'answer' in another case of the branch on kind does not; have all cases give" in str(caught.value)
    with pytest.raises(PipelineError, match="has no cases"):
        branch("kind", {})
    with pytest.raises(PipelineError, match="'branch on lambda' has a condition whose fields cannot be read"):
        branch(lambda **all: True, {True: QA})


def test_a_group_can_be_wired_as_a_whole() -> None:
    both = stage(parallel(typed_search, QA), name="both", inputs={"question": "query"}, outputs="context, answer")
    assert fields(both) == (("query",), ("k",), ("context", "answer"))
    assert both.name == "both"


def test_one_side_of_a_chain_is_enough() -> None:
    assert (dspy.Predict(QA) >> stage("answer -> b")).outputs == ("answer", "b")
    assert (QA >> stage("answer -> b")).outputs == ("answer", "b")
    assert (stage(QA) >> "answer -> b").outputs == ("answer", "b")
    assert (parallel(QA) >> branch("answer", {"yes": "answer -> b"})).outputs == ("answer", "b")


def test_a_pipeline_shows_its_stages() -> None:
    pipeline = Pipeline([("first", "question -> answer"), ("second", "answer -> verdict")], name="judge")
    assert repr(pipeline) == "<Pipeline judge not started: first >> second>"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Pipeline(5), "has steps=5; give stages"),
        (lambda: Pipeline(stage(lambda x: x, outputs="y"), inputs=5), "has inputs=5; give names of fields"),
        (lambda: stage(lambda x: x, outputs=5), "has outputs=5; give names of fields"),
        (lambda: branch("x", None), "has cases=None; give a mapping"),
        (lambda: branch(5, {}), "has on=5; give a field"),
    ],
)
def test_what_is_no_part_of_a_pipeline_is_named_in_the_error(build: Any, message: str) -> None:
    with pytest.raises(PipelineError, match=message):
        build()
