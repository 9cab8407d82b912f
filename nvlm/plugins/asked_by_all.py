"""Questions of which every process has its own share, as evaluation programs divide them.

Such programs take each process for a whole model. A replica's processes therefore hand their shares
to the one that leads, which has all of them answered, and every process gets its own answers back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch.distributed as dist

from nvlm.data.text.encode import EncodedPrompt
from nvlm.errors import NvlmError
from nvlm.generate.engine import Engine
from nvlm.generate.request import Sampling
from nvlm.generate.session import Session
from nvlm.parallel.groups import broadcast_object

# Of each process. Their tiles are sent to the one that leads: 32 x 7 x 448 x 448 x 3 are 135 MB.
_QUESTIONS_PER_ROUND = 32

# Prepares a question when its turn comes: prompts of thousands would not fit into memory.
Prepare = Callable[[], tuple[EncodedPrompt, Sampling]]


@dataclass
class Answered:
    text: str = ""  # without the spaces around it
    num_tokens: int = 0
    _parts: list[str] = field(default_factory=list)


def answer_share(engine: Engine, share: Sequence[Prepare]) -> list[Answered]:
    """An answer to each of this process's questions; every process calls this, with any number.

    Raises:
        NvlmError: a question of one of the replica's processes cannot be asked; all of them raise
            what it says.
    """
    group = engine.parallel.groups.mp
    num_processes = dist.get_world_size(group)
    lengths = _gathered(len(share), group, num_processes)
    answers: list[Answered] = []
    for start in range(0, max(lengths), _QUESTIONS_PER_ROUND):
        asked, problem = _prepared(share[start : start + _QUESTIONS_PER_ROUND])
        problems = [said for said in _gathered(problem, group, num_processes) if said]
        if problems:
            raise NvlmError(problems[0])
        answers += _answer_round(engine, asked)
    return answers


def _prepared(share: Sequence[Prepare]) -> tuple[list[tuple[EncodedPrompt, Sampling]], str]:
    """The questions, or what is wrong with the first that has a fault: others wait for this one."""
    try:
        return [prepare() for prepare in share], ""
    except NvlmError as error:
        return [], str(error)
    except Exception as error:  # of the evaluation program's own code, which makes the questions
        return [], f"{type(error).__name__}: {error}"


def _answer_round(engine: Engine, asked: list[tuple[EncodedPrompt, Sampling]]) -> list[Answered]:
    group = engine.parallel.groups.mp
    own, leader = dist.get_rank(group), dist.get_global_rank(group, 0)
    all_asked: list = [asked]
    if dist.get_world_size(group) > 1:
        all_asked = [None] * dist.get_world_size(group)
        holder = all_asked if own == 0 else None
        dist.gather_object(asked, holder, dst=leader, group=group)
    answers: dict[str, Answered] = {}
    with Session(engine) as session:
        if own != 0:
            session.follow()
        else:
            answers = _answer_all(session, all_asked)
    answers = broadcast_object(answers, leader, group)
    return [answers[f"{own} {number}"] for number in range(len(asked))]


def _answer_all(session: Session, all_asked: list) -> dict[str, Answered]:
    """By process and number."""
    answers: dict[str, Answered] = {}
    for process, asked in enumerate(all_asked):
        for number, (prompt, sampling) in enumerate(asked):
            answers[f"{process} {number}"] = Answered()
            session.add(f"{process} {number}", prompt, sampling)
    while session.num_open:
        for progress in session.step():
            answer = answers[progress.key]
            answer._parts.append(progress.text)
            answer.num_tokens += len(progress.token_ids)
    return {
        key: Answered("".join(answer._parts).strip(), answer.num_tokens)
        for key, answer in answers.items()
    }


def _gathered(value, group: dist.ProcessGroup, num_processes: int) -> list:
    if num_processes == 1:
        return [value]
    gathered: list = [None] * num_processes
    dist.all_gather_object(gathered, value, group=group)
    return gathered
