"""The sample files: whole records from many writers, the same choice every time, and no harm when a disk fails."""

import errno
import json
import logging
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mini_r1.common import printable
from mini_r1.countdown.puzzle import Puzzle
from mini_r1.run_folder import samples
from mini_r1.run_folder.samples import Sample, SampleLog, append_record

PROCESSES, RECORDS = 8, 200
TEXT, SUCCESS_TEXT = "completion_samples.txt", "success_completion_samples.txt"
JSON, SUCCESS_JSON = "completion_samples.jsonl", "success_completion_samples.jsonl"

SAMPLE = Sample(
    step=3,
    split="train",
    puzzle=Puzzle([19, 35, 44], 98),
    response="<think>Add.</think>\n<answer>44 + 19 + 35</answer>",
    reason="correct",
    value="98",
    format_reward=1.0,
    equation_reward=1.0,
    completion_tokens=17,
    rank=0,
    index=5,
)


def batch(steps, size=8, correct_every=2):
    """`size` samples for each step, every `correct_every`-th one correct."""
    return [
        replace(SAMPLE, step=step, index=index, equation_reward=float(index % correct_every == 0))
        for step in steps
        for index in range(size)
    ]


def read_json(path):
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Sample(puzzle=Puzzle(r.pop("nums"), r.pop("target")), **r) for r in records]


def folders(tmp_path):
    return tmp_path / "texts" / "run", tmp_path / "run" / "samples"


# --------------------------------------------------------------------------------------------------------------------
# Many writers
# --------------------------------------------------------------------------------------------------------------------


def long_response(rank, index):
    """Up to 20 kB with line breaks, other scripts and something at the end that shows whether all of it arrived."""
    size = (index * 7919 + rank * 104729) % (5000 if index % 10 == 0 else 400)
    return f"begin {rank}/{index}\n" + "é数\n😀 x"[: 1 + index % 6] * size + f"\nend {rank}/{index}"


def write_many(rank, text_folder, json_folder, barrier):
    real_write = os.write
    # A write may always take less than it was given. Without a lock, other writers would get in between.
    samples.os.write = lambda descriptor, view: real_write(descriptor, view[:3000])
    log = SampleLog(text_folder, json_folder, share=1.0, success_share=1.0)
    barrier.wait(60)
    for index in range(RECORDS):
        sample = replace(SAMPLE, rank=rank, index=index, response=long_response(rank, index), equation_reward=index % 2)
        log.record([sample])


def test_many_processes_write_whole_records(tmp_path):
    text_folder, json_folder = folders(tmp_path)
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(PROCESSES)
    writers = [
        spawn.Process(target=write_many, args=(rank, text_folder, json_folder, barrier)) for rank in range(PROCESSES)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * PROCESSES

    written = {(rank, index) for rank in range(PROCESSES) for index in range(RECORDS)}
    correct = {(rank, index) for rank, index in written if index % 2}
    assert max(len(long_response(rank, index).encode()) for rank, index in written) > 20_000
    for json_name, text_name, expected in ((JSON, TEXT, written), (SUCCESS_JSON, SUCCESS_TEXT, correct)):
        samples = read_json(json_folder / json_name)
        assert len(samples) == len(expected)
        assert {(sample.rank, sample.index) for sample in samples} == expected
        assert all(sample.response == long_response(sample.rank, sample.index) for sample in samples)

        text = (text_folder / text_name).read_text(encoding="utf-8")
        records = sorted(record for record in text.split("=" * 100 + "\n") if record)
        assert records == sorted(sample.as_text().removeprefix("=" * 100 + "\n") for sample in samples)


def test_records_are_appended_to_what_is_there(tmp_path):
    text_folder, json_folder = folders(tmp_path)
    for step in range(3):  # as after two restarts
        SampleLog(text_folder, json_folder, share=1.0, success_share=0.0).record(batch([step], size=2))
    assert read_json(json_folder / JSON) == batch(range(3), size=2)


# --------------------------------------------------------------------------------------------------------------------
# Which samples are kept
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "success_share", "kept", "kept_correct"),
    [
        pytest.param(0.0, 0.0, 0, 0, id="none"),
        pytest.param(1.0, 1.0, 80, 40, id="all"),
        pytest.param(1.0, 0.0, 80, 0, id="all, but no successes besides"),
        pytest.param(0.0, 1.0, 0, 40, id="successes only"),
    ],
)
def test_shares_of_none_and_all(tmp_path, share, success_share, kept, kept_correct):
    text_folder, json_folder = folders(tmp_path)
    SampleLog(text_folder, json_folder, share=share, success_share=success_share).record(batch(range(10)))
    for name, count in ((JSON, kept), (SUCCESS_JSON, kept_correct)):
        assert (json_folder / name).exists() == bool(count)
        assert not count or len(read_json(json_folder / name)) == count
    for name, count in ((TEXT, kept), (SUCCESS_TEXT, kept_correct)):
        assert (text_folder / name).exists() == bool(count)
        assert not count or (text_folder / name).read_text(encoding="utf-8").count("verdict: ") == count


def test_shares_are_kept_approximately_and_apart(tmp_path):
    text_folder, json_folder = folders(tmp_path)
    SampleLog(text_folder, json_folder, share=0.1, success_share=0.3).record(batch(range(500)))
    kept, successes = read_json(json_folder / JSON), read_json(json_folder / SUCCESS_JSON)
    assert len(kept) == pytest.approx(400, abs=80)
    assert len(successes) == pytest.approx(600, abs=90)
    # The two choices are independent: about a tenth of the kept successes are among the kept samples.
    both = {(s.step, s.index) for s in kept} & {(s.step, s.index) for s in successes}
    assert len(both) == pytest.approx(60, abs=30)


def test_the_success_file_holds_correct_ones_only(tmp_path):
    text_folder, json_folder = folders(tmp_path)
    SampleLog(text_folder, json_folder, share=0.5, success_share=0.5).record(batch(range(40), correct_every=3))
    successes = read_json(json_folder / SUCCESS_JSON)
    assert successes
    assert {sample.equation_reward for sample in successes} == {1.0}
    assert {sample.equation_reward for sample in read_json(json_folder / JSON)} == {0.0, 1.0}


def test_the_same_samples_are_kept_again(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    SampleLog(first, first, share=0.2, success_share=0.2).record(batch(range(100)))
    resumed = SampleLog(second, second, share=0.2, success_share=0.2)
    resumed.record(batch(range(60)))
    resumed = SampleLog(second, second, share=0.2, success_share=0.2)
    for sample in batch(range(60, 100)):
        resumed.record([sample])
    for name in (JSON, SUCCESS_JSON, TEXT, SUCCESS_TEXT):
        assert (first / name).read_bytes() == (second / name).read_bytes() != b""


def test_a_larger_share_keeps_the_same_samples_and_more(tmp_path):
    kept = []
    for share in (0.1, 0.5):
        folder = tmp_path / str(share)
        SampleLog(folder, folder, share=share, success_share=0).record(batch(range(50)))
        kept.append({(sample.step, sample.index) for sample in read_json(folder / JSON)})
    assert kept[0] < kept[1]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"step": 4}, id="step"),
        pytest.param({"rank": 1}, id="rank"),
        pytest.param({"split": "held_out"}, id="split"),
        pytest.param({"puzzle": Puzzle([19, 35, 44], 99)}, id="puzzle"),
    ],
)
def test_the_choice_differs_between(tmp_path, change):
    def kept(name, samples):
        SampleLog(tmp_path / name, tmp_path / name, share=0.5, success_share=0).record(samples)
        return {sample.index for sample in read_json(tmp_path / name / JSON)}

    samples = batch([3], size=64)
    assert kept("one", samples) != kept("other", [replace(sample, **change) for sample in samples])


def test_every_evaluation_keeps_the_same_held_out_puzzles(tmp_path):
    """And all completions of them, wherever they were sampled; the correct ones have a draw of their own."""
    evaluations = [
        replace(
            SAMPLE,
            split="held_out",
            step=step,
            rank=index % 2,
            index=(index + step) % 100,
            puzzle=Puzzle([19, 35, 44], index),
        )
        for step in (0, 5, 10)
        for index in range(100)
    ]
    SampleLog(tmp_path, tmp_path, share=0.3, success_share=0.3).record(evaluations)
    kept_puzzles = []
    for name in (JSON, SUCCESS_JSON):
        kept = read_json(tmp_path / name)
        puzzles = [{sample.puzzle.target for sample in kept if sample.step == step} for step in (0, 5, 10)]
        assert puzzles[0] == puzzles[1] == puzzles[2]
        assert 15 < len(puzzles[0]) < 45
        kept_puzzles.append(puzzles[0])
    assert kept_puzzles[0] != kept_puzzles[1]


# --------------------------------------------------------------------------------------------------------------------
# Disks that fail
# --------------------------------------------------------------------------------------------------------------------


def a_file_for_the_texts(text_folder, json_folder):
    text_folder.parent.mkdir(parents=True)
    text_folder.write_text("in the way")


def a_file_above_the_texts(text_folder, json_folder):
    text_folder.parent.write_text("in the way")


def a_folder_named_as_the_text_file(text_folder, json_folder):
    (text_folder / TEXT).mkdir(parents=True)
    (text_folder / SUCCESS_TEXT).mkdir(parents=True)


@pytest.mark.parametrize("obstacle", [a_file_for_the_texts, a_file_above_the_texts, a_folder_named_as_the_text_file])
def test_a_place_that_takes_no_files_is_reported_once(tmp_path, caplog, obstacle):
    text_folder, json_folder = folders(tmp_path)
    obstacle(text_folder, json_folder)
    log = SampleLog(text_folder, json_folder, share=1.0, success_share=1.0)
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            log.record(batch([step]))
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert str(text_folder / TEXT) in warning.getMessage()
    assert "training continues" in warning.getMessage()
    # What can be written is written.
    assert read_json(json_folder / JSON) == batch(range(3))


def test_no_place_at_all_is_reported_once(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    log = SampleLog(tmp_path / "file" / "a", tmp_path / "file" / "b", share=1.0, success_share=1.0)
    with caplog.at_level(logging.WARNING):
        log.record(batch(range(3)))
    assert len(caplog.records) == 1
    assert (tmp_path / "file").read_text() == "in the way"


class FillingDisk:
    """Stands in for `os.write`: takes `room` more bytes, then fails as a full disk does."""

    def __init__(self, room):
        self.room, self.real_write = room, os.write

    def __call__(self, descriptor, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.real_write(descriptor, data[: self.room])
        self.room -= written
        return written


@pytest.mark.parametrize("room", [0, 1, 10])
def test_a_record_that_does_not_fit_is_cut_off_again(tmp_path, monkeypatch, room):
    path = tmp_path / "records"
    append_record(path, b"first record\n")
    with monkeypatch.context() as patch:
        patch.setattr(samples.os, "write", FillingDisk(room))
        with pytest.raises(OSError, match="No space left"):
            append_record(path, b"second record\n")
    assert path.read_bytes() == b"first record\n"
    append_record(path, b"third record\n")
    assert path.read_bytes() == b"first record\nthird record\n"


def test_a_write_in_many_pieces_is_one_record(tmp_path, monkeypatch):
    real_write = os.write
    monkeypatch.setattr(samples.os, "write", lambda descriptor, data: real_write(descriptor, data[:3]))
    append_record(tmp_path / "records", b"a record longer than three bytes\n")
    assert (tmp_path / "records").read_bytes() == b"a record longer than three bytes\n"


def test_a_full_disk_is_reported_once_and_leaves_whole_records(tmp_path, monkeypatch, caplog):
    text_folder, json_folder = folders(tmp_path)
    log = SampleLog(text_folder, json_folder, share=1.0, success_share=0.0)
    log.record(batch([0]))
    text_before = (text_folder / TEXT).read_bytes()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(samples.os, "write", FillingDisk(100))
        log.record(batch([1]))
    (warning,) = caplog.records
    assert "No space left" in warning.getMessage()
    assert read_json(json_folder / JSON) == batch([0])
    assert (text_folder / TEXT).read_bytes() == text_before
    # Room again: recording goes on.
    log.record(batch([2]))
    assert read_json(json_folder / JSON) == batch([0, 2])


def test_no_descriptor_stays_open(tmp_path, monkeypatch):
    def open_descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_descriptors()
    for _ in range(5):
        append_record(tmp_path / "records", b"a record\n")
        with monkeypatch.context() as patch:
            patch.setattr(samples.os, "write", FillingDisk(2))
            with pytest.raises(OSError, match="No space left"):
                append_record(tmp_path / "records", b"a record\n")
    assert open_descriptors() == before


# --------------------------------------------------------------------------------------------------------------------
# What the files say
# --------------------------------------------------------------------------------------------------------------------


def test_a_sample_reads_well():
    assert SAMPLE.as_text() == (
        f"{'=' * 100}\n"
        "step 3 · train · numbers [19, 35, 44] · target 98\n"
        "verdict: correct (the equation comes to 98) · format 1 · 17 tokens\n"
        f"{'-' * 100}\n"
        "<think>Add.</think>\n<answer>44 + 19 + 35</answer>\n\n"
    )
    no_value = replace(SAMPLE, value=None, reason="no_answer", format_reward=0.0)
    assert "\nverdict: no_answer · format 0 · 17 tokens\n" in no_value.as_text()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("a\n\tb", "a\n\tb", id="line breaks and tabs stay"),
        pytest.param("é 数 😀 ×", "é 数 😀 ×", id="other scripts stay"),
        pytest.param("\x1b[31mred", "\\x1b[31mred", id="colour"),
        pytest.param("\x1b]0;title\x07", "\\x1b]0;title\\x07", id="window title"),
        pytest.param("\x9b2J", "\\x9b2J", id="clear screen in one C1 character"),
        pytest.param("no\ryes", "no\\ryes", id="carriage return that hides what stands before"),
        pytest.param("no\b\byes", "no\\x08\\x08yes", id="backspace"),
        pytest.param("a\x00b\x7f", "a\\x00b\\x7f", id="NUL and DEL"),
        pytest.param("a\u202eb", "a\\u202eb", id="right-to-left override"),
        pytest.param("a\u200bb", "a\\u200bb", id="zero-width space"),
        pytest.param("a\u2028b", "a\\u2028b", id="line separator"),
        pytest.param("a\ud83db", "a\\ud83db", id="lone surrogate"),
        pytest.param("\U000e0041", "\\U000e0041", id="invisible tag character"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(categories=("C", "Z", "L", "S", "N"))))
def test_nothing_unprintable_reaches_the_text_file(text):
    shown = replace(SAMPLE, response=text).as_text()
    assert all(char in "\n\t" or char.isprintable() for char in shown)
    assert shown.encode("utf-8")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\x1b[2Jgone\r\n", id="terminal escapes"),
        pytest.param("half a pair \ud83d and the other \ude00", id="lone surrogates"),
        pytest.param("line\u2028separator\x85next\x0b\x0c\x1c", id="everything that ends a line"),
        pytest.param('quotes " and \\ backslashes \\n', id="what JSON escapes"),
        pytest.param("=" * 100, id="the rule between records"),
        pytest.param("", id="nothing"),
    ],
)
def test_any_response_survives_in_json_and_is_harmless_as_text(tmp_path, text):
    sample = replace(SAMPLE, response=text)
    SampleLog(tmp_path, tmp_path, share=1.0, success_share=0.0).record([sample, SAMPLE])
    assert (tmp_path / JSON).read_bytes().count(b"\n") == 2
    assert read_json(tmp_path / JSON) == [sample, SAMPLE]
    written = (tmp_path / TEXT).read_bytes()
    assert written.decode("utf-8") == sample.as_text() + SAMPLE.as_text()
    assert not set(written) & set(range(32)) - {ord("\n"), ord("\t")}
