"""A RAG program as actors: 20 clients ask at the same time, and each of its three parts is killed under them.

Run it with `python examples/02_rag_service.py`. It uses a small model on this machine, and takes some 25 s.
"""

import asyncio
import logging
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import dspy

from promptside import ActorSystem, Endpoint, Event, LMPool, Program
from promptside.pools import Capabilities, EmbeddedModelUnavailable, EmbeddedServer

try:
    import bm25s
except ImportError:
    sys.exit('the package bm25s is not installed; run: pip install "promptside[rag]"')

TEXTS = Path(__file__).with_name("texts")

QUESTIONS = {
    "Which side of the stage is the prompt side in British theatres?": "left",
    "Who gives actors the words that they have forgotten?": "prompter",
    "In which year was limelight first used in a public theatre?": "1837",
    "Which theatre was the first building to be lit entirely by electricity?": "Savoy",
    "Which theatre was the first to light its stage with gas?": "Chestnut",
    "What is left burning on the stage when everybody has gone home?": "A ghost light",
    "Where was the first safety curtain in Britain?": "Drury Lane",
    "How many people did the fire in the Iroquois Theatre kill?": "six hundred",
    "In which year did the Globe burn down?": "1613",
    "How many people does the theatre of Epidaurus seat?": "fourteen thousand",
    "From which Greek word does the word scene come?": "skene",
    "What was the crane in Greek theatres called?": "mechane",
    "Who is said to have been the first actor?": "Thespis",
    "Who designed the Teatro Olimpico?": "Palladio",
    "In which city is the Teatro Farnese?": "Parma",
    "What is the front of a raked stage called?": "downstage",
    "Who invented the revolving stage?": "Namiki Shozo",
    "What is painted on the back wall of a noh stage?": "pine tree",
    "Which people were hired to work the ropes of a fly loft?": "sailors",
    "Who wrote the novel The Phantom of the Opera?": "Leroux",
}


class Retrieve(dspy.Module):
    """Finds the passages that share words with the question, by BM25."""

    def __init__(self, folder: Path, k: int) -> None:
        super().__init__()
        texts = [path.read_text() for path in sorted(folder.glob("*.md"))]
        self.passages = [" ".join(text.splitlines()[1:]).strip() for text in texts]  # without the title
        self.k = k
        self.index = bm25s.BM25()
        self.index.index(self._words(self.passages), show_progress=False)

    def forward(self, question: str) -> dspy.Prediction:
        found = self.index.retrieve(self._words([question]), corpus=self.passages, k=self.k, show_progress=False)
        return dspy.Prediction(passages=list(found.documents[0]))

    def _words(self, texts: list[str]) -> bm25s.tokenization.Tokenized:
        return bm25s.tokenize(texts, stopwords="en", show_progress=False)


class Rerank(dspy.Module):
    """Keeps the sentences of the passages that have the most words of the question."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, question: str, passages: list[str]) -> dspy.Prediction:
        asked = self._words(question)
        sentences = [sentence for passage in passages for sentence in re.findall(r"\S[^.]+\.", passage)]
        sentences.sort(key=lambda sentence: -len(asked & self._words(sentence)))
        return dspy.Prediction(passages=sentences[: self.keep])

    def _words(self, text: str) -> set[str]:
        return set(re.findall(r"\w{4,}", text.lower()))


class Answer(dspy.Signature):
    """Answer the question with a few words from the passages."""

    passages: list[str] = dspy.InputField()
    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


class Guide(dspy.Module):
    """Answers questions from the passages of a folder. An ordinary DSPy program: it knows nothing of actors."""

    def __init__(self) -> None:
        super().__init__()
        self.retrieve = Retrieve(TEXTS, k=6)
        self.rerank = Rerank(keep=2)
        self.generate = dspy.Predict(Answer)

    def forward(self, question: str) -> dspy.Prediction:
        found = self.retrieve(question=question).passages
        best = self.rerank(question=question, passages=found).passages
        answer = self.generate(question=question, passages=best).answer
        return dspy.Prediction(answer=answer, passages=best)


class Stage:
    """Kills each part of the program while calls are inside it, and tells what the event bus says about it."""

    def __init__(self, system: ActorSystem, program: Program) -> None:
        self.counts: Counter[str] = Counter()
        self._began = time.perf_counter()
        self._program = program
        system.events.on("actor.*", self.tell)
        system.events.on("module.stopped", self.strike)

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self._began:6.2f} s  {text}\n", end="", flush=True)

    def tell(self, event: Event) -> None:
        self.counts[event.type] += 1
        if event.type in ("actor.crashed", "actor.restarted"):
            self.say(f"  {event.type:15}  {event.source}")

    async def strike(self, event: Event) -> None:
        """When a part has answered five calls."""
        self.counts[event.source] += 1
        part = event.source.rpartition("/")[2]
        if part != "forward" and self.counts[event.source] == 5:
            self.say(f"  we kill          {event.source}")
            self._program.submodule(part).kill()


async def serve(server: EmbeddedServer) -> bool:
    params = frozenset({"temperature", "max_tokens", "response_format"})
    supports = Capabilities(response_schema=True, params=params)
    endpoint = Endpoint(f"openai/{server.model}", api_base=server.url, api_key="none", supports=supports)
    async with ActorSystem("rag") as system:
        pool = await LMPool(endpoint).start(system)
        lm = pool.lm(cache=False, temperature=0.0, max_tokens=16)
        guide = await Program(Guide, name="guide", lm=lm, attempts=2).start(system)
        print(f"\n{system.tree()}\n")

        stage = Stage(system, guide)
        found = right = 0

        async def client(question: str, gold: str) -> None:
            nonlocal found, right
            prediction = await guide.acall(question=question)
            found += any(gold in passage for passage in prediction.passages)
            right += gold in prediction.answer
            stage.say(f"{question}\n          {prediction.answer}")

        with dspy.context(adapter=dspy.JSONAdapter()):
            clients = (client(question, gold) for question, gold in QUESTIONS.items())
            lost = [end for end in await asyncio.gather(*clients, return_exceptions=True) if end is not None]

        print(f"\n{system.tree()}\n")
        (stats,) = pool.stats().values()
        print(f"calls      {len(QUESTIONS)}, of which {len(lost)} were lost")
        print(f"restarts   {stage.counts['actor.restarted']}")
        print(f"LM calls   {stats['attempts']}: those that were inside the crash were made again")
        print(f"found      {found} answers by BM25 and the reranker; {server.model} made use of {right}")
        return not lost


def main() -> int:
    logging.getLogger("dspy.clients.lm").setLevel(logging.ERROR)  # else it warns of each answer that is cut short
    try:
        with EmbeddedServer(max_concurrency=2, context=512) as server:
            print(f"model: {server.model}, embedded, loaded in {server.load_seconds:.1f} s", flush=True)
            return 0 if asyncio.run(serve(server)) else 1
    except EmbeddedModelUnavailable as missing:
        print(missing, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
