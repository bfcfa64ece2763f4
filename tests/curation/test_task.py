"""The task "curate" from a folder of pictures to a manifest, and what it refuses."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinov2_jax import main
from dinov2_jax.curation.task import stages_of
from dinov2_jax.data.sources.open import open_source
from dinov2_jax.errors import UserError
from tests.curation.conftest import PICTURES, draw

Options = dict[str, str]
QUICK = {"curate.calibrate.pictures": "20", "curate.dedup.threshold": "0.8"}


def curate(recipe: str, workdir: Path, pool: Path, **options: str) -> None:
    named = {
        "data.path": str(pool),
        **QUICK,
        **{k.replace("__", "."): v for k, v in options.items()},
    }
    given = [f"--config.{name}={value}" for name, value in named.items()]
    arguments = [f"--config=configs/curate/{recipe}.py", f"--workdir={workdir}", *given]
    main.run(*resolved(arguments))


def resolved(arguments: list[str]) -> tuple:
    parsed = main.parse_arguments(arguments)
    return main.resolve_config(parsed), parsed.workdir


@pytest.fixture(scope="module")
def curated(messy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run") / "pool"
    curate("dedup", workdir, messy)
    return workdir


def rows_of(folder: Path) -> dict[str, list]:
    return pq.read_table(sorted(folder.glob("part-*.parquet"))).to_pydict()


def contents(workdir: Path) -> dict[str, bytes]:
    """All files of rows, by name; clocks and lock files differ from run to run."""
    kinds = (".parquet", ".npy", ".txt", ".npz")
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in sorted(workdir.rglob("*"))
        if path.suffix in kinds
    }


def test_copies_are_removed_and_the_largest_stays(curated: Path, messy: Path) -> None:
    names = rows_of(curated / "pictures")["name"]
    found = rows_of(curated / "dedup")
    assert found["row"] == list(range(len(names)))
    kept = {name for name, keep in zip(names, found["kept"], strict=True) if keep}
    originals = {f"{number:03}.png" for number in range(PICTURES)}
    # The first of equal pictures stays, and "_" comes after ".".
    assert kept == originals | {"white_too.png"}
    component = dict(zip(names, found["component"], strict=True))
    assert component["000.png"] == component["000_jpeg.jpg"]
    assert component["001.png"] == component["001_equal.bmp"]
    assert component["white.png"] == component["white_too.png"]


def test_every_edge_says_why(curated: Path) -> None:
    names = rows_of(curated / "pictures")["name"]
    edges = rows_of(curated / "dedup" / "edges")
    kinds = {
        (names[a], names[b], kind)
        for a, b, kind in zip(edges["a"], edges["b"], edges["kind"], strict=True)
    }
    assert ("002.png", "002_same.png", "bytes") in kinds
    assert ("001.png", "001_equal.bmp", "pixels") in kinds
    assert ("white.png", "white_too.png", "blank") in kinds
    assert {(a, b) for a, b, _ in kinds if a[:3] != b[:3]} == set()
    assert all(a < b for a, b in zip(edges["a"], edges["b"], strict=True))


def test_the_manifest_and_the_list_hold_what_is_kept(curated: Path, messy: Path) -> None:
    source = open_source("manifest", str(curated / "manifest"))
    listed = (curated / "manifest" / "kept.txt").read_text().splitlines()
    assert [source.name(row) for row in range(len(source))] == listed
    assert len(listed) == PICTURES + 1 and all((messy / name).exists() for name in listed)
    made_by = json.loads((curated / "manifest" / "manifest.json").read_text())["made_by"]
    assert set(made_by) >= {"pictures", "embed", "calibrate", "dedup", "sample"}


def test_each_stage_says_what_it_did(curated: Path) -> None:
    record = json.loads((curated / "pictures" / "stage.json").read_text())
    assert record["complete"] and record["rows"] == PICTURES + 12
    assert record["counts"] == {"unreadable": 1, "blank": 2}
    assert record["settings"]["pictures"] == PICTURES + 12


def test_the_report_shows_pictures(curated: Path) -> None:
    page = (curated / "report" / "report.html").read_text()
    for words in ("Removed beside kept: hash", "Calibration", "data:image"):
        assert words in page


def test_a_second_run_does_nothing(
    curated: Path, messy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in curated.rglob("*.parquet")}
    curate("dedup", curated, messy)
    assert capsys.readouterr().out.count("finished before") == 7
    assert before == {path: path.stat().st_mtime_ns for path in curated.rglob("*.parquet")}


def test_other_settings_are_refused_by_name(curated: Path, messy: Path) -> None:
    remedy = (
        r"dedup was made otherwise \(settings.max_component.*remove dedup, sample, manifest, report"
    )
    with pytest.raises(UserError, match=remedy):
        curate("dedup", curated, messy, curate__dedup__max_component="0.5")


def test_references_take_whole_components_away(curated: Path, messy: Path, tmp_path: Path) -> None:
    reference, queries = tmp_path / "test", tmp_path / "queries"
    reference.mkdir()
    queries.mkdir()
    draw(6).convert("L").save(reference / "grey.jpg", quality=70)
    draw(9).save(queries / "nine.png")
    workdir = tmp_path / "lvd"
    sets = {"curate__references": f"seen:{reference}", "curate__queries": f"like:{queries}"}
    smaller = {"curate__kmeans__sizes": "2,", "curate__retrieve__more_than": "0"}
    options = {"curate__retrieve__how": "both", "curate__retrieve__neighbours": "3"}
    curate("lvd", workdir, messy, **sets, **smaller, **options)
    names = rows_of(workdir / "pictures")["name"]
    components = rows_of(workdir / "dedup")["component"]
    dropped = rows_of(workdir / "exclude")
    assert dropped["reference"] == ["seen"]
    gone = {n for n, c in zip(names, components, strict=True) if c in dropped["component"]}
    assert gone == {"006.png", "006_jpeg.jpg"}
    found = rows_of(workdir / "retrieve")
    nearest = [
        names[row]
        for row, how, rank in zip(found["row"], found["how"], found["rank"], strict=True)
        if how == "sample" and rank == 0
    ]
    assert nearest == ["009.png"]
    assert found["how"].count("sample") == 3
    kept = (workdir / "manifest" / "kept.txt").read_text().splitlines()
    assert "009.png" in kept and not gone & set(kept)


def test_references_without_a_copy_in_the_pool_take_nothing_away(
    messy: Path, tmp_path: Path
) -> None:
    reference = tmp_path / "test"
    reference.mkdir()
    draw(900).save(reference / "new.png")
    options = {"curate__references": f"seen:{reference}", "curate__stages": "exclude,manifest"}
    curate("dedup", tmp_path / "run", messy, **options)
    assert rows_of(tmp_path / "run" / "exclude") == {"component": [], "reference": []}
    assert len(rows_of(tmp_path / "run" / "sample")["row"]) == PICTURES + 1


def test_blank_references_take_equal_pictures_away(messy: Path, tmp_path: Path) -> None:
    reference = tmp_path / "test"
    reference.mkdir()
    Image.new("RGB", (40, 40), "white").save(reference / "white.bmp")
    options = {"curate__references": f"seen:{reference}", "curate__stages": "exclude,manifest"}
    curate("dedup", tmp_path / "run", messy, **options)
    edges = rows_of(tmp_path / "run" / "exclude" / "edges")
    assert edges["kind"] == ["equal"] and len(rows_of(tmp_path / "run" / "sample")["row"]) == 24


def test_a_target_holds_for_what_is_retrieved(messy: Path, tmp_path: Path) -> None:
    queries = tmp_path / "queries"
    queries.mkdir()
    draw(9).save(queries / "nine.png")
    options = {"curate__queries": f"like:{queries}", "curate__stages": "retrieve,manifest"}
    curate("dedup", tmp_path / "run", messy, **options, curate__target="3")
    assert len(rows_of(tmp_path / "run" / "sample")["row"]) == 3
    with pytest.raises(UserError, match="is 5 more than the 4 pictures"):
        curate("dedup", tmp_path / "more", messy, **options, curate__target="9")
    curate("dedup", tmp_path / "more", messy, **options, curate__target="2")
    assert len(rows_of(tmp_path / "more" / "sample")["row"]) == 2


def test_what_was_refused_can_be_mended_in_the_same_folder(messy: Path, tmp_path: Path) -> None:
    options = {"curate__stages": "cluster"}
    with pytest.raises(UserError, match="500 clusters of 24"):
        curate("dedup", tmp_path / "run", messy, **options, curate__kmeans__sizes="500,")
    curate("dedup", tmp_path / "run", messy, **options, curate__kmeans__sizes="2,")
    assert set(rows_of(tmp_path / "run" / "cluster")["cluster"]) == {0, 1}


def test_a_target_is_shared_by_clusters(messy: Path, tmp_path: Path) -> None:
    sizes = {"curate__kmeans__sizes": "4,2", "curate__target": "9"}
    curate("hierarchy", tmp_path / "run", messy, **sizes)
    sample = rows_of(tmp_path / "run" / "sample")
    assert len(sample["row"]) == 9 and set(sample["reason"]) == {"balanced"}
    with pytest.raises(UserError, match="more than the 24 pictures that are left"):
        curate("hierarchy", tmp_path / "more", messy, **sizes | {"curate__target": "999"})


def test_a_killed_run_gives_the_rows_of_an_unbroken_one(messy: Path, tmp_path: Path) -> None:
    options = {"data.path": str(messy), **QUICK}
    start = [sys.executable, "-m", "dinov2_jax.main", "--config=configs/curate/dedup.py"]
    start += [f"--config.{name}={value}" for name, value in options.items()]
    # Both in processes of their own: the last bits of numpy's products differ between this one and
    # a plain start of the command.
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    subprocess.run([*start, f"--workdir={unbroken}"], check=True, capture_output=True)
    command = [*start, f"--workdir={killed}"]
    for stage in ("pictures", "dedup"):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        while process.poll() is None and not (killed / stage).exists():
            time.sleep(0.01)
        process.kill()  # SIGKILL; nothing if it has ended
        process.communicate()
    subprocess.run(command, check=True, capture_output=True)
    assert contents(killed) == contents(unbroken)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"curate__stages": "dedupe"}, "did you mean 'dedup'"),
        ({"curate__stages": "exclude"}, "needs config.curate.references"),
        ({"curate__references": "nowhere", "curate__stages": "exclude"}, "not written name:path"),
        ({"curate__engine": "beam"}, "one of local, ray"),
        ({"curate__dedup__threshold": "1.5"}, "must be at most 1|from 0 to 1"),
        ({"curate__kmeans__sizes": "500,", "curate__stages": "cluster"}, "500 clusters of"),
    ],
)
def test_wrong_input_is_told_in_a_sentence(
    messy: Path, tmp_path: Path, options: Options, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        curate("dedup", tmp_path / "run", messy, **options)


def test_the_pool_is_no_reference(messy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names the pool itself"):
        options = {"curate__references": f"own:{messy}", "curate__stages": "exclude"}
        curate("dedup", tmp_path / "run", messy, **options)


def test_pictures_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    (pool / "a.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"none of 1 pictures can be read, such as a\.png"):
        curate("dedup", tmp_path / "run", pool)


def test_blank_pictures_alone_are_told(tmp_path: Path) -> None:
    pool = tmp_path / "pool"
    pool.mkdir()
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(pool / "a.png")
    with pytest.raises(UserError, match="all 1 readable pictures are blank"):
        curate("dedup", tmp_path / "run", pool)


def test_the_dry_run_plans_for_more_pictures_than_there_are(
    capsys: pytest.CaptureFixture[str], messy: Path, tmp_path: Path
) -> None:
    billion = {"curate__dry_run": "True", "curate__plan_rows": "1200000000"}
    curate("dedup", tmp_path / "run", messy, **billion)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1,200,000,000 pictures")
    assert re.search(r"dedup .* cells", "\n".join(lines))
    assert not (tmp_path / "run").exists()


def test_needed_stages_are_added_in_order() -> None:
    config, _ = resolved(["--config=configs/curate/default.py", "--config.curate.stages=manifest"])
    wanted = ("pictures", "embed", "calibrate", "dedup", "sample", "manifest")
    assert stages_of(config) == wanted
