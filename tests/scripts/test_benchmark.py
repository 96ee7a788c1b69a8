"""The benchmark's arithmetic: what is counted, what a result must hold, who is compared with whom."""

import json
import mmap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import compare_variants as variants
from benchmarks.cold_cache import touched_pages
from benchmarks.compare_loaders import figure_at, order_of, result_of, summary_of, without_folders
from data_loading.augmentations.base import DrawContext
from data_loading.readers import OpenCases, open_volume
from data_loading.recipes import build_recipe
from scripts import benchmark_record as records
from scripts.benchmark_loader import Measured, pooled
from scripts.benchmark_meter import MeteredVolume, ReadMeter
from scripts.benchmark_operators import always
from utils.errors import DatasetError
from utils.storage import to_plain
from utils.usage import Usage, usage_now

MACHINE = records.machine_record(None)
SETTINGS = records.Settings(
    dataset="Tiny",
    configuration="3d_fullres",
    cases=2,
    channels=1,
    image_type="float16",
    patch=(4, 6, 5),
    batch_size=2,
    oversampling=0.33,
    augmentations=(),
    augment_in="host",
    in_memory=True,
    outputs=1,
    num_workers=1,
    prefetch=2,
    device="cpu",
)
NOISE_ROW = records.OperatorCost(
    name="noise", place="host", probability=0.1, applied_ms=5.0, forced_ms=5.0, mean_ms=0.5
)
RECORD = records.LoaderRecord(
    schema=records.SCHEMA,
    mode="loader",
    machine=MACHINE,
    options={"batch_size": 2},
    settings=SETTINGS,
    first_batch_s=0.5,
    patches_per_s=records.Spread(min=1.0, median=2.0, max=3.0, repeats=(2.0, 1.0, 3.0)),
    ms_per_batch=records.BatchTimes(mean=4.0, p50=4.0, p90=5.0, p95=6.0, p99=7.0),
    delivered_mb_per_s=1.0,
    bytes_per_patch=records.Reads(cut=100.0, from_device=None, by_calls=0.0),
    processor=records.Processor(ms_per_patch=1.0, cores_busy=1.0, machine_cores_busy=1.5),
    memory_mb=records.Memory(peak_resident=500.0, device_in_use=None),
    operators=records.OperatorCosts(rows=(NOISE_ROW,), host_ms=0.5, graph_ms=0.0, one_thread_ms=0.6),
)


def as_json(record: records.LoaderRecord) -> dict:
    return json.loads(json.dumps(to_plain(record)))


# --- the record --------------------------------------------------------------------------------------------


def test_a_record_survives_json() -> None:
    assert records.check_record(as_json(RECORD), source="made here") == RECORD


def test_another_schema_is_refused() -> None:
    with pytest.raises(DatasetError, match="schema 1, got 2"):
        records.check_record(as_json(replace(RECORD, schema=2)), source="made here")


def test_a_missing_key_is_named() -> None:
    data = as_json(RECORD)
    del data["settings"]["batch_size"]
    with pytest.raises(DatasetError, match="batch_size"):
        records.check_record(data, source="made here")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"patches_per_s": replace(RECORD.patches_per_s, median=9.0)}, "patches_per_s is not ordered"),
        ({"patches_per_s": replace(RECORD.patches_per_s, repeats=())}, "no repeats"),
        ({"ms_per_batch": replace(RECORD.ms_per_batch, p99=5.5)}, "ms_per_batch is not ordered"),
        ({"bytes_per_patch": records.Reads(cut=-1, from_device=None, by_calls=None)}, "cut is negative"),
        (
            {
                "operators": records.OperatorCosts(
                    rows=(replace(NOISE_ROW, mean_ms=5.0),), host_ms=5.0, graph_ms=0.0, one_thread_ms=5.0
                )
            },
            "probability times its cost",
        ),
    ],
)
def test_figures_that_cannot_be_are_refused(changed: dict, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        records.check_record(as_json(replace(RECORD, **changed)), source="made here")


# --- what is counted ---------------------------------------------------------------------------------------


def stored(folder: Path, name: str, array: np.ndarray) -> Path:
    np.save(folder / name, array)
    return folder / name


def test_a_block_counts_its_voxels_inside_the_volume(tmp_path: Path) -> None:
    image = open_volume(stored(tmp_path, "x.npy", np.ones((2, 4, 5, 6), np.float16)), in_memory=False)
    meter = ReadMeter(OpenCases(()))
    volume = MeteredVolume(image, meter)
    volume.block((1, 1, 1), (2, 2, 2), fill=0.0)
    assert meter.bytes == 2 * 2 * 2 * 2 * 2  # channels x voxels x bytes of float16
    volume.single_precision_block((-1, 3, 4), (3, 4, 4))  # 2 x 2 x 2 of it lie inside
    assert meter.bytes == 2 * 2 * 2 * 2 * 2 * 2
    volume.block((9, 0, 0), (2, 2, 2), fill=0.0)  # nothing lies inside
    assert meter.bytes == 2 * 2 * 2 * 2 * 2 * 2
    volume.fetched((0, 0, 0), (4, 5, 1))
    assert meter.bytes == 2 * 2 * 2 * 2 * 2 * 2 + 2 * 4 * 5 * 2


def test_pages_of_a_window_are_those_that_hold_a_byte_of_it() -> None:
    array = np.zeros((2, 7, 9, 1500), np.float16)
    offset, start, shape = 128, (2, 3, 700), (4, 5, 650)
    places = np.arange(array.nbytes).reshape(*array.shape, 2) + offset
    d, h, w = (slice(low, low + size) for low, size in zip(start, shape, strict=True))
    expected = len(np.unique(places[:, d, h, w] // mmap.PAGESIZE))
    assert touched_pages(array, offset, start, shape) == expected


def test_usage_is_what_lies_between_two_readings() -> None:
    early = Usage(wall_s=1.0, process_s=2.0, machine_s=3.0, device_bytes=4, call_bytes=None)
    late = Usage(wall_s=11.0, process_s=22.0, machine_s=33.0, device_bytes=44, call_bytes=5)
    assert late.since(early) == Usage(
        wall_s=10.0, process_s=20.0, machine_s=30.0, device_bytes=40, call_bytes=None
    )


def test_loaders_that_work_together_add_up_by_the_slowest_clock() -> None:
    def measured(wall_s: float, process_s: float, calls: int | None) -> Measured:
        used = Usage(wall_s=wall_s, process_s=process_s, machine_s=5.0, device_bytes=4, call_bytes=calls)
        return Measured(
            first_batch_s=wall_s, laps_s=[[wall_s]], repeats=[used], voxel_bytes=10, peak_mb=wall_s
        )

    found = pooled([measured(2.0, 1.0, 3), measured(4.0, 1.5, None)])
    assert found.repeats == [Usage(wall_s=4.0, process_s=2.5, machine_s=5.0, device_bytes=8, call_bytes=None)]
    assert (found.processes, found.laps_s, found.voxel_bytes, found.peak_mb) == (2, [[4.0]], 20, 4.0)


def test_work_uses_time_of_the_process() -> None:
    before = usage_now()
    sum(number * number for number in range(200_000))
    used = usage_now().since(before)
    assert used.process_s > 0
    assert used.wall_s > 0


def test_a_forced_part_has_every_probability_at_one() -> None:
    (part,) = build_recipe(["rotate_scale:rotation_probability=0,scale_probability=0,degrees=10"])
    certain = always(part)
    assert certain is not None
    context = DrawContext(patch=(8, 8, 8), num_channels=1)
    rates = [
        np.mean([one.draw(np.random.default_rng(seed), context)[0] for seed in range(50)])
        for one in (part, certain)
    ]
    assert rates == [0.0, 1.0]
    assert getattr(certain, "degrees", None) == 10


# --- the comparison ----------------------------------------------------------------------------------------


def test_the_last_line_with_a_brace_is_the_result() -> None:
    assert result_of('warming up\n{"rate": 1}\nmp 3.0\n{"rate": 2}\nbye\n') == {"rate": 2}


def test_no_line_with_a_brace_is_an_error() -> None:
    with pytest.raises(ValueError, match="no line of JSON"):
        result_of("done\n")


def test_a_dotted_path_goes_through_lists_too() -> None:
    assert figure_at({"runs": [{"rate": 1}, {"rate": 7}]}, "runs.1.rate") == 7.0


def test_a_path_that_leads_nowhere_says_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"no 'speed', only \['rate'\]"):
        figure_at({"rate": 1}, "speed")


def test_the_first_place_changes_from_round_to_round() -> None:
    assert [order_of(number)[0] for number in range(4)] == ["ours", "peer", "ours", "peer"]


def test_the_ratio_is_ours_over_the_peers() -> None:
    runs = {
        "ours": [{"value": 8.0}, {"value": 10.0}, {"value": 30.0}],
        "peer": [{"value": 4.0}, {"value": 2.0}, {"value": 3.0}],
    }
    summary = summary_of(runs)
    assert summary["ours"]["median"] == 10.0
    assert summary["ratio_ours_to_peer"] == {"of_medians": 10 / 3, "rounds_min": 2.0, "rounds_max": 10.0}


def test_commands_are_written_without_folders() -> None:
    words = ["/opt/peer/bin/python", "run.py", "--raw", "/data/my raw", "--batch", "2"]
    assert without_folders(words) == "python run.py --raw 'my raw' --batch 2"


def test_every_variant_goes_first_in_turn() -> None:
    assert [variants.order_of(["a", "b", "c"], number)[0] for number in range(4)] == ["a", "b", "c", "a"]


def test_variants_are_set_against_the_last_one_round_by_round() -> None:
    runs = {
        "real": [{"result": {"rate": value}} for value in (8.0, 2.0, 6.0)],
        "synthetic": [{"result": {"rate": 10.0}}] * 3,
    }
    summary = variants.summary_of(variants.values_of(runs, "rate"))
    assert summary["real"]["ratios"] == [0.8, 0.2, 0.6]
    assert (summary["real"]["median"], summary["real"]["ratio_to_last"]) == (6.0, 0.6)
    assert summary["synthetic"]["ratio_to_last"] == 1.0


def test_the_options_of_a_variant_come_behind_its_name() -> None:
    commands = variants.commands_of(["bf16=--amp --shape 1 8 8 8", "plain="], ["run", "--json"])
    assert commands["bf16"] == ["run", "--json", "--amp", "--shape", "1", "8", "8", "8"]
    assert commands["plain"] == ["run", "--json"]
