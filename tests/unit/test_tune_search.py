"""What the tuner tries, and what it makes of it: from made-up service times and a made-up server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from likeness_bench.figures import RunFigures
from likeness_bench.steps import ModelCounters
from likeness_bench.tune.candidates import Knob, Plan, first_guesses
from likeness_bench.tune.judge import Round, hopeless, judge
from likeness_bench.tune.search import GUESS, CandidateRounds, Search
from likeness_bench.tune.service import ServiceTime, service_times, worth_tuning
from likeness_bench.tune.settings import Settings, changes, in_words
from likeness_export.serving_section import ServingSection, StepSettings, keys_of_steps

TARGET_MS = 100.0
Speed = Callable[[Settings], float]


def keys(towers: int = 2) -> dict[str, tuple[str, ...]]:
    names = [f"t{number}" for number in range(towers)]
    return keys_of_steps(names, names, ["text"])


def untuned(towers: int = 2, **serving: Any) -> Settings:
    return Settings.of(ServingSection(**serving), keys(towers))


def times(shares: Mapping[str, float]) -> tuple[ServiceTime, ...]:
    found = [
        ServiceTime(
            step=step,
            products=100,
            executions=25,
            mean_batch=4.0,
            service_ms=10 * share,
            batch_ms=40 * share,
            share=share,
            queue_ms=1.0,
        )
        for step, share in shares.items()
    ]
    return tuple(sorted(found, key=lambda time: -time.share))


def plan(shares: Mapping[str, float], cores: int = 4, towers: int = 2, **other: Any) -> Plan:
    return Plan(
        **{
            "keys": keys(towers),
            "times": times(shares),
            "cores": cores,
            "largest_batch": 32,
            "target_ms": TARGET_MS,
            **other,
        }
    )


def turn(speed: float, p99_ms: float | None = 50.0) -> RunFigures:
    return RunFigures(products_per_s=speed, p50_ms=p99_ms, p99_with_failures_ms=p99_ms, requests=100, failed=0)


def searched(
    what: Plan,
    start: Settings,
    speed: Speed,
    *,
    trials: int = 10_000,
    fails: Callable[[Settings], bool] = lambda _: False,
) -> Search:
    """Search on a made-up server that is as fast as ``speed`` says, and always keeps the target."""
    calls: list[Settings] = []

    async def compare(incumbent: Settings, candidate: Settings, what: str) -> CandidateRounds:
        assert what.startswith(f"trial {len(calls) + 1}: ")
        calls.append(candidate)
        rounds = (Round(incumbent=turn(speed(incumbent)), candidate=turn(speed(candidate))),) * 3
        return CandidateRounds(
            rounds=rounds, failure="the server ended by itself with code 1" if fails(candidate) else ""
        )

    search = Search(
        plan=what, incumbent=start, compare=compare, over=lambda: "the time is up" if len(calls) >= trials else ""
    )
    best = asyncio.run(search.run())
    assert best == search.incumbent
    assert len(calls) == len(set(calls)) == len(search.trials)
    assert start not in calls
    return search


# --- service times


def counters(products: int, executions: int, busy_ms: float, waited_ms: float = 0.0) -> ModelCounters:
    parts = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    return ModelCounters(
        inferences=products,
        executions=executions,
        failures=0,
        count=dict.fromkeys(parts, products),
        ns={**dict.fromkeys(parts, 0), "queue": round(1e6 * waited_ms * products)},
        busy_ns=round(1e6 * busy_ms),
    )


def test_service_times_are_what_happened_between_two_readings() -> None:
    before = {"text_encoder": counters(10, 5, 50.0), "image_encoder": counters(7, 7, 7.0)}
    after = {
        "text_encoder": counters(30, 10, 350.0, waited_ms=2.0),
        "image_encoder": counters(7, 7, 7.0),
        "text_preprocess": counters(20, 20, 100.0),
        "embed_text": counters(20, 0, 0.0),
        "similarity_matrix": counters(0, 0, 0.0),
    }
    first, second = service_times(before, after)
    assert (first.step, first.products, first.executions, first.mean_batch) == ("text_encoder", 20, 5, 4.0)
    assert (first.service_ms, first.batch_ms, first.share, first.queue_ms) == (15.0, 60.0, 0.75, 3.0)
    assert (second.step, second.service_ms, second.share, second.queue_ms) == ("text_preprocess", 5.0, 0.25, 0.0)
    assert service_times(after, after) == ()


def test_steps_with_little_time_are_left_as_they_are_however_many_there_are() -> None:
    few = times({"t0_encoder": 0.9, "t1_encoder": 0.06, "fusion_text": 0.04})
    assert [time.step for time in worth_tuning(few)] == ["t0_encoder", "t1_encoder"]
    many = times({f"t{number}_encoder": 1 / 40 for number in range(40)})
    assert len(worth_tuning(many)) == 40


# --- the first guess


@pytest.mark.parametrize("cores", [1, 2, 4, 16, 64])
def test_the_first_guess_divides_the_cores_by_the_shares(cores: int) -> None:
    shares = {"t0_encoder": 0.6, "t1_encoder": 0.2, "t0_preprocess": 0.17, "fusion_text": 0.03}
    start = untuned()
    bold, *rest = first_guesses(plan(shares, cores), start)
    heavy = [bold[step] for step in ("t0_encoder", "t1_encoder")]
    threads = sum(held.instances * held.cpu_threads for held in heavy) + bold["t0_preprocess"].instances
    assert max(1, 0.5 * cores) <= threads <= max(3, 2 * cores)
    assert bold["t0_encoder"].instances >= bold["t1_encoder"].instances
    assert bold["fusion_text"] == StepSettings(instances=1, cpu_threads=1, preferred_batch_size=(), queue_delay_us=0)
    assert bold["similarity"] == start["similarity"]  # it was not measured: nothing is known of it
    assert all(held.cpu_threads <= cores for held in heavy)
    assert len(rest) == 1
    assert changes(start, rest[0], keys()) == {"fusion_text": {"cpu_threads": 1}}


def test_an_accelerator_is_not_crowded_with_instances() -> None:
    without = {step: tuple(key for key in held if key != "cpu_threads") for step, held in keys().items()}
    what = plan(
        {"t0_encoder": 0.8, "t0_preprocess": 0.2}, 32, keys=without, elsewhere=frozenset({"t0_encoder", "fusion_text"})
    )
    bold, *_ = first_guesses(what, untuned())
    assert bold["t0_encoder"].instances == 2
    assert bold["t0_preprocess"].instances > 2
    assert {held.cpu_threads for _, held in bold.steps} == {2}  # means nothing there, so it stays


def test_nothing_is_guessed_where_nothing_was_measured() -> None:
    assert first_guesses(plan({}), untuned()) == []


# --- alternatives


def alternatives(what: Plan, knob: Knob, step: str, start: Settings) -> list[StepSettings]:
    found = list(what.alternatives(knob, step, start))
    for settings in found:
        assert set(changes(start, settings, what.keys)) == {step}
    return [settings[step] for settings in found]


def test_shapes_are_the_nearest_ones_within_two_threads_per_core() -> None:
    what = plan({"t0_encoder": 0.6, "t0_preprocess": 0.4}, cores=2)
    shapes = [(held.instances, held.cpu_threads) for held in alternatives(what, Knob.SHAPE, "t0_encoder", untuned())]
    assert shapes == [(2, 1), (2, 2), (1, 1)]
    crowded = untuned(instances=16)
    assert [held.instances for held in alternatives(what, Knob.SHAPE, "t0_preprocess", crowded)] == [8]
    assert [held.instances for held in alternatives(what, Knob.SHAPE, "t0_preprocess", untuned())] == [2]


def test_batches_and_delays_fit_what_can_wait_and_what_may_be_waited() -> None:
    what = plan({"t0_encoder": 0.6, "t1_encoder": 0.4}, largest_batch=8)
    batches = alternatives(what, Knob.BATCH, "t0_encoder", untuned())
    assert [held.preferred_batch_size for held in batches] == [(8,), (4,), (2,)]
    delays = alternatives(what, Knob.DELAY, "t0_encoder", untuned())
    assert [(held.queue_delay_us, held.preferred_batch_size) for held in delays] == [
        (delay_us, (size,)) for delay_us in (6000, 24000) for size in (8, 4, 2)
    ]
    preferred = untuned().changed("t0_encoder", preferred_batch_size=(4,), queue_delay_us=6000)
    delays = alternatives(what, Knob.DELAY, "t0_encoder", preferred)
    assert [(held.queue_delay_us, held.preferred_batch_size) for held in delays] == [(24000, (4,)), (0, (4,))]
    hasty = plan({"t0_encoder": 0.6}, target_ms=8.0)
    assert alternatives(hasty, Knob.DELAY, "t0_encoder", untuned()) == []
    single = plan({"t0_encoder": 0.6}, largest_batch=1)
    assert alternatives(single, Knob.BATCH, "t0_encoder", untuned()) == []
    assert alternatives(what, Knob.BATCH, "similarity_matrix", untuned()) == []
    assert alternatives(what, Knob.DELAY, "similarity_matrix", untuned()) == []


# --- which is better


def rounds(*pairs: tuple[float, float], p99_ms: tuple[float | None, float | None] = (50.0, 50.0)) -> list[Round]:
    return [Round(incumbent=turn(before, p99_ms[0]), candidate=turn(after, p99_ms[1])) for before, after in pairs]


@pytest.mark.parametrize(
    ("found", "better", "counts"),
    [
        (rounds((10, 11), (20, 22), (5, 5.5)), True, "products/s"),
        (rounds((10, 10.2), (20, 20.4), (5, 5.1)), False, "products/s"),  # better, but not clearly
        (rounds((10, 20), (20, 19), (5, 4.9)), False, "products/s"),  # one lucky round
        (rounds((10, 9), (20, 30), (5, 6)), False, "products/s"),
        (rounds((10, 9), *[(20, 30)] * 4), True, "products/s"),
        (rounds(*[(10, 9)] * 2, *[(20, 30)] * 3), False, "products/s"),  # as often as by chance
        (rounds((10, 30), (10, 30), (10, 30), p99_ms=(50, 120)), False, "the target"),
        (rounds((10, 8), (10, 8), (10, 8), p99_ms=(120, 50)), True, "the target"),
        (rounds((10, 30), (10, 30), (10, 30), p99_ms=(101, 99.9)), False, "the target"),  # by a hair
        (rounds((10, 8), (10, 8), (10, 8), p99_ms=(300, 200)), True, "p99"),
        (rounds((10, 30), (10, 30), (10, 30), p99_ms=(200, 300)), False, "p99"),
        (rounds((10, 30), p99_ms=(200, None)), False, "p99"),
        (rounds((10, 3), p99_ms=(None, 200)), True, "p99"),
        (rounds((10, 30), p99_ms=(None, None)), False, "p99"),
        (rounds((0, 30)), True, "products/s"),
        (rounds((0, 0)), False, "products/s"),
    ],
)
def test_the_most_products_within_the_target_or_the_lower_p99(found: list[Round], better: bool, counts: str) -> None:
    verdict = judge(found, TARGET_MS)
    assert (verdict.better, verdict.counts) == (better, counts)


def test_a_candidate_that_cannot_win_enough_rounds_is_left() -> None:
    assert not hopeless([], 5, TARGET_MS)
    assert not hopeless(rounds((10, 9)), 5, TARGET_MS)
    assert not hopeless(rounds((10, 9), (10, 11), (10, 11)), 5, TARGET_MS)
    assert hopeless(rounds((10, 9), (10, 9)), 5, TARGET_MS)
    assert hopeless(rounds((10, 11), (10, 9), (10, 11), (10, 9)), 5, TARGET_MS)
    # A hair above the target p99 counts, but later rounds may bring both below it, and then this one is far ahead.
    assert not hopeless(rounds((10, 30), (10, 30), p99_ms=(101, 103)), 5, TARGET_MS)
    assert hopeless(rounds((10, 30), (10, 30), p99_ms=(200, 300)), 5, TARGET_MS)
    # Failures of one round make its p99 infinite, and are not of the next ones.
    failed = rounds((10, 30), p99_ms=(20, None))
    assert judge([*failed, *rounds(*[(10, 30)] * 4)], TARGET_MS).better
    assert not hopeless([*failed, *rounds((10, 30))], 5, TARGET_MS)
    assert hopeless(rounds((10, 3), (10, 3), p99_ms=(20, None)), 5, TARGET_MS)


# --- the search

SHARES = {"t0_encoder": 0.6, "t1_encoder": 0.3, "t0_preprocess": 0.1}


def hill(best: Mapping[str, tuple[int, int]]) -> Speed:
    """A server that slows down with every doubling away from the best shape of each step."""

    def speed(settings: Settings) -> float:
        found = 100.0
        for step, (instances, threads) in best.items():
            held = settings[step]
            found /= 1.2 ** abs(held.instances.bit_length() - instances.bit_length())
            if step.endswith("_encoder"):
                found /= 1.2 ** abs(held.cpu_threads.bit_length() - threads.bit_length())
        return found

    return speed


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (1, 8), (2, 4), (4, 2)])
def test_a_known_best_is_found(shape: tuple[int, int]) -> None:
    best = {"t0_encoder": shape, "t1_encoder": (1, 4), "t0_preprocess": (2, 1)}
    search = searched(plan(SHARES, cores=8), untuned(), hill(best))
    found = search.incumbent
    assert (found["t0_encoder"].instances, found["t0_encoder"].cpu_threads) == shape
    assert (found["t1_encoder"].instances, found["t1_encoder"].cpu_threads) == (1, 4)
    assert found["t0_preprocess"].instances == 2
    assert found["similarity"] == untuned()["similarity"]
    assert not search.ended


def test_batch_sizes_and_delays_are_searched_too() -> None:
    def speed(settings: Settings) -> float:
        held = settings["t1_encoder"]
        return 10 + 5 * (held.preferred_batch_size == (16,)) + 3 * (held.queue_delay_us > 0)

    found = searched(plan(SHARES), untuned(), speed).incumbent
    assert found["t1_encoder"].preferred_batch_size == (16,)
    assert found["t1_encoder"].queue_delay_us > 0
    assert changes(untuned(), found, keys()).keys() == {"t1_encoder"}


@given(seed=st.integers(0, 10_000), cores=st.integers(1, 16), towers=st.integers(1, 6))
@hypothesis_settings(deadline=None, max_examples=60)
def test_it_never_ends_worse_than_it_started(seed: int, cores: int, towers: int) -> None:
    def speed(settings: Settings) -> float:
        return 10 + crc32(f"{seed} {settings}".encode()) % 1000  # without rhyme or reason

    start = untuned(towers)
    shares = {f"t{number}_encoder": 1 / towers for number in range(towers)}
    search = searched(plan(shares, cores, towers), start, speed, trials=200)
    assert speed(search.incumbent) >= speed(start)
    assert search.incumbent == start or any(trial.kept for trial in search.trials)


def test_where_nothing_is_better_nothing_changes() -> None:
    start = untuned()
    search = searched(plan(SHARES), start, lambda settings: 100.0 if settings == start else 99.0)
    assert search.incumbent == start
    assert search.trials
    assert not any(trial.kept for trial in search.trials)


@pytest.mark.parametrize("trials", [0, 1, 5])
def test_the_budget_is_kept(trials: int) -> None:
    search = searched(plan(SHARES), untuned(), hill({"t0_encoder": (8, 1)}), trials=trials)
    assert len(search.trials) == trials
    assert search.ended == "the time is up"


def test_a_trial_that_fails_is_a_row_and_not_the_end() -> None:
    search = searched(
        plan(SHARES),
        untuned(),
        lambda settings: float(settings["t0_encoder"].instances),
        fails=lambda settings: settings["t0_encoder"].instances == 4,
    )
    failed = [trial for trial in search.trials if trial.failure]
    assert failed
    assert any(trial.verdict and trial.verdict.better for trial in failed)  # as long as it ran
    assert not any(trial.kept for trial in failed)
    assert search.incumbent["t0_encoder"].instances != 4
    assert not search.ended


def test_an_interrupted_trial_decides_nothing() -> None:
    async def compare(_: Settings, __: Settings, ___: str) -> None:
        return None

    search = Search(plan=plan(SHARES), incumbent=untuned(), compare=compare, over=lambda: "")
    assert asyncio.run(search.run()) == untuned()
    assert (search.trials, search.ended) == ([], "interrupted")


def test_a_pipeline_of_any_length() -> None:
    towers = 12
    shares = {f"t{number}_{kind}": 1 / 24 for number in range(towers) for kind in ("encoder", "preprocess")}
    best = {f"t{number}_encoder": (2, 1) for number in range(towers)}
    search = searched(plan(shares, 4, towers), untuned(towers), hill(best))
    assert {search.incumbent[step].instances for step in best} == {2}


def test_changes_in_words() -> None:
    start = untuned()
    after = start.changed("t0_encoder", instances=2, preferred_batch_size=(4, 8))
    assert in_words(start, after, keys()) == "t0_encoder: instances 1 -> 2, preferred_batch_size any -> 4+8"
    everywhere = untuned(cpu_threads=1)
    words = in_words(start, everywhere, keys())
    assert words == "t0_encoder, t1_encoder and 3 other steps: cpu_threads 2 -> 1"
    search = searched(plan(SHARES), start, lambda _: 1.0, trials=1)
    assert search.trials[0].why == GUESS
    assert search.trials[0].changes
