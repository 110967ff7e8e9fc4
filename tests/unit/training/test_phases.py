"""A step's seconds belong to one phase each, and the page of a profile says where they went."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from mini_r1.training.phases import (
    IDLE,
    LOGPS,
    PHASES,
    REWARD,
    ROLLOUT,
    SYNC,
    UPDATE,
    PhaseClock,
    Profile,
    Step,
    page,
    peak_flops,
    shares,
    summary,
    table,
)


class FakeTime:
    """A clock that stands still until it is told to pass."""

    def __init__(self) -> None:
        self.now, self.log = 100.0, []

    def __call__(self) -> float:
        return self.now

    @contextmanager
    def mark(self, name: str):
        self.log.append(f"+{name}")
        yield
        self.log.append(f"-{name}")


def a_step(time: FakeTime, clock: PhaseClock) -> dict[str, float]:
    """One of eleven seconds: a rollout that sends weights, old log-probabilities, rewards, and the loss's own."""
    clock.start()
    time.now += 0.5  # before the first micro-batch
    with clock.phase(IDLE, UPDATE):
        time.now += 1
        with clock.phase(ROLLOUT, IDLE):
            with clock.phase(SYNC, ROLLOUT):
                time.now += 2
            time.now += 3
        with clock.phase(LOGPS, IDLE):
            time.now += 0.25
        with clock.phase(REWARD, IDLE):
            time.now += 0.75
    with clock.phase(LOGPS, IDLE) as is_open:  # the loss asks for log-probabilities as well
        assert not is_open
        time.now += 2
    time.now += 1.5  # the optimizer
    return clock.stop()


def test_each_second_is_in_one_phase():
    time = FakeTime()
    clock = PhaseClock(now=time, mark=time.mark)
    for _ in range(2):  # a second step starts from zero
        seconds = a_step(time, clock)
        assert seconds == {ROLLOUT: 3, SYNC: 2, LOGPS: 0.25, REWARD: 0.75, UPDATE: 4, IDLE: 1}
        assert sum(seconds.values()) == 11
        assert clock.current is None
    time.now += 50  # an evaluation between steps is in none
    with clock.phase(IDLE, UPDATE) as is_open:
        assert not is_open
    assert sum(a_step(time, clock).values()) == 11


def test_a_trace_names_one_phase_at_a_time():
    time = FakeTime()
    a_step(time, PhaseClock(now=time, mark=time.mark))
    opened = [entry[1:] for entry in time.log[::2]]
    assert opened == [UPDATE, IDLE, ROLLOUT, SYNC, ROLLOUT, IDLE, LOGPS, IDLE, REWARD, IDLE, UPDATE]
    assert [entry[1:] for entry in time.log[1::2]] == opened  # each is closed before the next


def test_a_phase_that_fails_gives_its_seconds_and_leaves():
    time = FakeTime()
    clock = PhaseClock(now=time)

    def fails() -> None:
        with clock.phase(IDLE, UPDATE), clock.phase(REWARD, IDLE):
            time.now += 2
            raise ValueError("full")

    clock.start()
    with pytest.raises(ValueError, match="full"):
        fails()
    assert clock.current == UPDATE
    assert clock.stop()[REWARD] == 2


def test_what_a_device_still_computes_counts_for_the_phase_that_asked():
    time = FakeTime()
    pending = [0.0]

    def synchronize() -> None:
        time.now, pending[0] = time.now + pending[0], 0.0

    clock = PhaseClock(synchronize=synchronize, now=time)
    clock.start()
    with clock.phase(IDLE, UPDATE), clock.phase(ROLLOUT, IDLE):
        pending[0] = 4.0  # queued; the call returned at once
    assert clock.stop() == {**dict.fromkeys(PHASES, 0.0), ROLLOUT: 4.0}


@pytest.mark.parametrize(("device", "peak"), [
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA H100 PCIe", 756e12),
    ("NVIDIA A100-SXM4-80GB", 312e12),
    ("NVIDIA GB200", None),  # another chip than B200
    ("NVIDIA GeForce RTX 2080 Ti", None),
])  # fmt: skip
def test_peaks_of_known_gpus(device: str, peak: float | None):
    assert peak_flops(device) == peak


def step(rollout: float, update: float, idle: float, **others: float) -> Step:
    seconds = dict.fromkeys(PHASES, 0.0) | {ROLLOUT: rollout, UPDATE: update, IDLE: idle}
    return Step(seconds, **{"completions": 8, "tokens": 400, "update_flops": 6e12, "flops": 8e12, **others})


# Of each rank: two timed steps, and the traced one.
RANK_0 = [step(2.0, 1.5, 0.5), step(4.0, 1.5, 0.5), step(9.0, 9.0, 9.0)]
RANK_1 = [step(2.5, 1.5, 0.0), step(4.5, 1.5, 0.0), step(9.0, 9.0, 9.0)]
OPERATORS = [("aten::mm", 0.5, 0.25, 120)]


def profile_of(*ranks: list[Step], **more: object) -> Profile:
    return Profile(list(ranks), last=4, device="CPU, 1 thread each", operators=OPERATORS, trace="t.gz (1 MB)", **more)


def test_the_table_holds_medians_range_and_shares_of_the_timed_steps():
    assert table(profile_of(RANK_0)) == [
        "| phase | seconds | range | share |",
        "| --- | --- | --- | --- |",
        "| rollout | 3.000 | 2.000 to 4.000 | 60.0% |",
        "| weight sync | 0.000 | 0.000 to 0.000 | 0.0% |",
        "| log-probabilities | 0.000 | 0.000 to 0.000 | 0.0% |",
        "| reward | 0.000 | 0.000 to 0.000 | 0.0% |",
        "| update | 1.500 | 1.500 to 1.500 | 30.0% |",
        "| idle | 0.500 | 0.500 to 0.500 | 10.0% |",
        "| step | 5.000 | 4.000 to 6.000 | 100.0% |",
    ]
    assert sum(shares(RANK_0).values()) == pytest.approx(1)


def test_of_several_ranks_it_shows_the_one_that_waits_least_and_the_one_that_waits_most():
    head, _, rollout, *_ = table(profile_of(RANK_0, RANK_1))
    assert head == "| phase | seconds | range | share | rank 1, slowest | rank 0, fastest |"
    assert rollout == "| rollout | 3.000 | 2.000 to 4.000 | 60.0% | 3.500 | 3.000 |"


def test_the_page_of_a_cpu_run():
    text = page(profile_of(RANK_0, RANK_1))
    assert text.startswith("# Where the time goes: 2 steps from step 2 on\n")
    assert "On 2 processes (CPU, 1 thread each)" in text
    assert "step 4 was traced, which slows it (27.000 s), and is not in the table" in text
    # 2 steps of 2 ranks of 400 tokens, in the 7 seconds that the slower rank needs for them.
    assert "- rollouts: 229 tokens/s on all ranks together; 16 completions a step, 50.0 tokens in the mean" in text
    assert "| `aten::mm` | 0.500 | 25.0% | 120 |" in text
    assert "Trace of step 4: `t.gz (1 MB)`" in text
    assert "MFU" not in text
    assert "memory" not in text
    assert len(text.splitlines()) < 50


def test_the_page_of_a_gpu_run():
    text = page(profile_of(RANK_0, peak=10e12, memory=30.4e9))
    assert "- peak memory: 30.4 GB" in text
    # 2 x 6 of 10 TFLOP/s in 2 x 1.5 s of updates; 2 x 8 in 4 + 6 s.
    assert "- MFU: update 40.0%, whole step 16.0% of 10 TFLOP/s (bfloat16, dense)" in text
    assert "MFU counts N, all parameters" in text


def test_a_trace_that_is_too_large_to_add_up():
    text = page(Profile([RANK_0], last=4, device="CPU", trace="t.gz (1 MB)"))
    assert "too many events" in text
    assert "| operator" not in text


def test_one_step_alone_is_timed_and_traced():
    text = page(profile_of(RANK_0[:1]))
    assert "1 step from step 4 on" in text
    assert "it was traced, which slows it" in text
    assert "| step | 4.000 | 4.000 to 4.000 | 100.0% |" in text


def test_the_summary_names_the_phases_that_there_were():
    assert summary(profile_of(RANK_0))[0] == "5 s a step: rollout 60%, update 30%, idle 10%"


def test_steps_on_completions_of_an_earlier_one_have_no_rate():
    waiting = [step(0.0, 1.0, 0.0, completions=0, tokens=0)]
    assert summary(profile_of(waiting))[1] == "no rollouts in these steps"
