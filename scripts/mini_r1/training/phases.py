"""The phases of an optimizer step: a clock that gives each second to one of them, and the page of a profile.

| phase | what runs |
|---|---|
| rollout | completions are sampled |
| weight sync | vLLM gets the new weights |
| log-probabilities | the passes of the old policy and of the reference, before the loss; most recipes need none |
| reward | completions are judged and samples kept |
| update | the loss, its backward pass, the optimizer |
| idle | the rest: other ranks are waited for, texts become tensors, rewards become advantages |

A step lasts from its first micro-batch to its optimizer step; logging, evaluations and saves lie between steps. Plain
arithmetic; nothing here needs torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from statistics import median

from mini_r1.recipe.machine import plural

ROLLOUT, SYNC, LOGPS, REWARD, UPDATE, IDLE = "rollout", "weight sync", "log-probabilities", "reward", "update", "idle"
PHASES = (ROLLOUT, SYNC, LOGPS, REWARD, UPDATE, IDLE)

# Dense bfloat16 FLOP/s by the words of torch's device name, the longer names first; NVIDIA's data sheets.
_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
}


def peak_flops(device: str) -> float | None:
    """A GPU's bfloat16 FLOP/s, None when it is not known.

    Example:
        >>> peak_flops("NVIDIA A100-SXM4-80GB")
        312000000000000.0
    """
    words = set(device.replace("-", " ").split())
    return next((peak for name, peak in _PEAKS.items() if set(name.split()) <= words), None)


_LEGEND = """\
The update is loss, backward pass and optimizer. Idle is waiting for other ranks, and what is in no other phase. Ranks
also wait for each other while gradients are reduced, and that counts as update."""
_FLOPS = """\
MFU counts N, all parameters, and these operations a token: in the update 6 N, with an adapter 4 N and 2 for each of its
parameters, and 2 N in rows whose backward pass is skipped; in rollouts, unless a server makes them, and for
log-probabilities 2 N. Attention scores and recomputed activations are not counted."""


class PhaseClock:
    """Divides a step's time among its phases. Within a phase that opens inside another, the other one's time stands.

    Args:
        synchronize: waits for what the device still computes, so that it counts for the phase that asked for it.
        mark: makes the context that names a phase in a trace.
        now: seconds.

    Attributes:
        current: the phase that is open, None between steps.
    """

    def __init__(
        self,
        synchronize: Callable[[], object] = lambda: None,
        mark: Callable[[str], AbstractContextManager[object]] = nullcontext,
        now: Callable[[], float] = time.perf_counter,
    ):
        self._synchronize, self._mark, self._now = synchronize, mark, now
        self.current: str | None = None
        self._seconds: dict[str, float] = {}
        self._since = 0.0
        self._marked: AbstractContextManager[object] = nullcontext()

    def start(self) -> None:
        """Begins a step, in `update`: whatever no phase is opened for."""
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._switch(UPDATE)

    def stop(self) -> dict[str, float]:
        """Ends the step. Returns the seconds of each phase, whose sum is the step's."""
        self._switch(None)
        return self._seconds

    @contextmanager
    def phase(self, name: str, within: str) -> Iterator[bool]:
        """Opens a phase if the phase `within` is the open one, and says whether it did."""
        if self.current != within:
            yield False
            return
        self._switch(name)
        try:
            yield True
        finally:
            self._switch(within)

    def _switch(self, name: str | None) -> None:
        self._synchronize()
        now = self._now()
        if self.current is not None:
            self._seconds[self.current] += now - self._since
            self._marked.__exit__(None, None, None)
        self.current, self._since = name, now
        if name is not None:
            self._marked = self._mark(name)
            self._marked.__enter__()


@dataclass
class Step:
    """One step of one rank.

    Attributes:
        seconds: by phase.
        completions: sampled in it.
        tokens: sampled in it, prompts apart.
        update_flops, flops: floating-point operations of the update, and of everything that ran on this rank's device.
    """

    seconds: dict[str, float]
    completions: int = 0
    tokens: int = 0
    update_flops: float = 0.0
    flops: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return sum(self.seconds.values())


@dataclass
class Profile:
    """What was recorded.

    Attributes:
        ranks: the steps of each rank, in order, the traced one last.
        last: number of the last step.
        device: its name, for people.
        peak: of each rank's device, FLOP/s; None when it is not known.
        memory: bytes that PyTorch allocated at most on any rank's GPU; None without one.
        operators: the most expensive ones of the traced step on rank 0: name, self time in seconds, its share of all
            operators', calls; empty where they were too many to add up.
        trace: rank 0's trace, as `name (size)`.
    """

    ranks: list[list[Step]]
    last: int
    device: str
    peak: float | None = None
    memory: float | None = None
    operators: list[tuple[str, float, float, int]] = field(default_factory=list)
    trace: str = ""

    def timed(self, rank: int) -> list[Step]:
        """A rank's steps without the traced one, which recording slows; where there is no other, that one."""
        return self.ranks[rank][:-1] or self.ranks[rank]

    def sum_of(self, value: Callable[[Step], float]) -> float:
        """The sum of a value over the timed steps of all ranks."""
        return sum(value(step) for rank in range(len(self.ranks)) for step in self.timed(rank))


# --------------------------------------------------------------------------------------------------------------------
# Text
# --------------------------------------------------------------------------------------------------------------------


def shares(steps: Sequence[Step]) -> dict[str, float]:
    """Each phase's share (0..1) of the time of some steps."""
    total = sum(step.total for step in steps)
    return {name: sum(step.seconds[name] for step in steps) / total for name in PHASES}


def facts(profile: Profile) -> list[str]:
    """Rates of the timed steps, a line each: rollouts of all ranks, memory, and MFU where the peak is known."""
    steps, ranks = len(profile.timed(0)), range(len(profile.ranks))
    completions, tokens = profile.sum_of(lambda step: step.completions), profile.sum_of(lambda step: step.tokens)
    slowest = max(sum(step.seconds[ROLLOUT] for step in profile.timed(rank)) for rank in ranks)
    lines = ["no rollouts in these steps"]
    if completions:
        each = f"{completions / steps:.0f} completions a step, {tokens / completions:.1f} tokens in the mean"
        lines = [f"rollouts: {tokens / slowest:,.0f} tokens/s on all ranks together; {each}"]
    if profile.memory is not None:
        lines.append(f"peak memory: {profile.memory / 1e9:.1f} GB that PyTorch allocated, on the fullest GPU")
    if profile.peak is not None:
        update = profile.sum_of(lambda step: step.update_flops) / profile.sum_of(lambda step: step.seconds[UPDATE])
        whole = profile.sum_of(lambda step: step.flops) / profile.sum_of(lambda step: step.total)
        of = f"of {profile.peak / 1e12:.0f} TFLOP/s (bfloat16, dense)"
        lines.append(f"MFU: update {update / profile.peak:.1%}, whole step {whole / profile.peak:.1%} {of}")
    return lines


def summary(profile: Profile) -> list[str]:
    """The page in a few lines."""
    steps = profile.timed(0)
    parts = [f"{name} {share:.0%}" for name, share in shares(steps).items() if share]
    return [f"{median(step.total for step in steps):.3g} s a step: {', '.join(parts)}", *facts(profile)]


def table(profile: Profile) -> list[str]:
    """The phases of rank 0 and, where there are several ranks, of those that waited least and most."""
    steps = profile.timed(0)
    head, columns = ["phase", "seconds", "range", "share"], []
    if len(profile.ranks) > 1:
        idle = [shares(profile.timed(rank))[IDLE] for rank in range(len(profile.ranks))]
        for word, rank in (("slowest", idle.index(min(idle))), ("fastest", idle.index(max(idle)))):
            head.append(f"rank {rank}, {word}")
            columns.append(profile.timed(rank))
    rows = [head, ["---"] * len(head)]
    for name, share in [*shares(steps).items(), ("step", 1.0)]:
        of = [[step.seconds.get(name, step.total) for step in some] for some in (steps, *columns)]
        row = [name, f"{median(of[0]):.3f}", f"{min(of[0]):.3f} to {max(of[0]):.3f}", f"{share:.1%}"]
        rows.append([*row, *(f"{median(seconds):.3f}" for seconds in of[1:])])
    return [f"| {' | '.join(row)} |" for row in rows]


def operators(profile: Profile) -> list[str]:
    """The most expensive operators of the traced step, as a table."""
    if not profile.operators:
        return ["The trace has too many events to add up its operators."]
    head = [f"| operator in step {profile.last} | self time, s | share | calls |", "|---|---|---|---|"]
    rows = (f"| `{name}` | {own:.3f} | {share:.1%} | {calls} |" for name, own, share, calls in profile.operators)
    return [*head, *rows]


def page(profile: Profile) -> str:
    """`breakdown.md`."""
    timed, everything, last = profile.timed(0), profile.ranks[0], profile.last
    where = f"{plural(len(profile.ranks), 'process')} ({profile.device})"
    apart = f"step {last} was traced, which slows it ({everything[-1].total:.3f} s), and is not in the table"
    alike = "it was traced, which slows it"
    lines = [
        f"# Where the time goes: {plural(len(timed), 'step')} from step {last - len(everything) + 1} on",
        "",
        f"On {where}, after one step of warm-up; {apart if len(everything) > 1 else alike}.",
        "Seconds a step are medians, shares are of the sum; each second is in one phase only.",
        "",
        *table(profile),
        "",
        _LEGEND,
        "",
        *(f"- {line}" for line in facts(profile)),
        *(["", _FLOPS] if profile.peak is not None else []),
        "",
        *operators(profile),
        "",
        f"Trace of step {last}: `{profile.trace}`, one a rank, for https://ui.perfetto.dev.",
    ]
    return "\n".join(lines) + "\n"
