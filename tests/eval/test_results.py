"""What results say about data, choices and the paper, and what a second start computes again."""

import json
import re
import shutil

import numpy as np
import pytest

from configs.eval import default as eval_config
from dinov2_jax.config.files import ConfigError
from dinov2_jax.eval import published, runner
from dinov2_jax.eval.runner import evaluate
from dinov2_jax.heads.linear import LinearHead, load_head
from tests.eval.found import entry, values
from tests.eval.test_run_sets import save
from tests.features.tiny import backbone, write_weights

pytestmark = pytest.mark.usefixtures("one_device")

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights") / "bundle")


def write_set(root, noise=90, **splits):
    """Folders of coloured noise: split -> pictures a class."""
    for split, count in splits.items():
        for label, name in enumerate(CLASSES):
            for number in range(count):
                save(root / split / name / f"{number}.png", label, noise)
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("data") / "coloured", train=8, test=4)


def ask(weights, path, protocols, **changes):
    config = eval_config.get_config()
    small = {"linear.iterations": 3, "linear.batch_size": 16, "knn.ks": (1,)}
    where = {"checkpoint": str(weights), "data.source": "folder", "data.path": str(path)}
    fields = where | {"data.labels": "folders", "protocols": protocols} | small | changes
    config.update_from_flattened_dict(fields)
    return config


def variants(tmp_path):
    for label in range(3):
        save(tmp_path / "v2" / str(label) / "0.jpeg", label)
    return {"robustness.imagenet_v2": str(tmp_path / "v2")}


@pytest.fixture
def runs(monkeypatch):
    """The protocol and data set of every task that runs."""
    seen, real = [], runner._run

    def watch(planned, *rest):
        seen.append((planned.protocol, planned.task.data))
        real(planned, *rest)

    monkeypatch.setattr(runner, "_run", watch)
    return seen


# -------------------------------------------------------------------- which classifier is judged
def test_robustness_judges_the_classifier_of_this_evaluation(weights, data, tmp_path, monkeypatch):
    """An older classifier of another protocol lies in the same workdir and is not taken."""
    v2 = variants(tmp_path)
    judged = []
    logits = LinearHead.logits

    def watch(self, *rest):
        judged.append(self.weight)
        return logits(self, *rest)

    evaluate(ask(weights, data, ("linear",)), str(tmp_path / "out"))
    both = ("robustness", "linear_cached")  # in any order
    monkeypatch.setattr(LinearHead, "logits", watch)
    found = evaluate(ask(weights, data, both, **v2), str(tmp_path / "out"))
    cached = load_head(tmp_path / "out/linear_cached/coloured/head.safetensors")
    assert np.array_equal(judged[-1], cached.weight)
    notes = entry(found, "robustness", "imagenet_v2")["notes"]
    assert notes["trained_by"] == "linear_cached"
    more = {"linear.iterations": 5}
    again = evaluate(ask(weights, data, both, **v2, **more), str(tmp_path / "out"))
    assert (
        entry(again, "robustness")["settings"]["after"]["linear_cached"]["linear"]
        == (entry(again, "linear_cached")["settings"]["linear"])
    )
    newer = load_head(tmp_path / "out/linear_cached/coloured/head.safetensors")
    assert np.array_equal(judged[-1], newer.weight) and not np.array_equal(
        judged[-1], cached.weight
    )
    with pytest.raises(ConfigError, match=r"has none of these weights, data and settings"):
        evaluate(
            ask(weights, data, ("robustness",), **v2, **{"linear.seed": 1}), str(tmp_path / "out")
        )


def test_a_given_head_is_judged_without_training(weights, data, tmp_path, runs):
    trained = evaluate(ask(weights, data, ("linear_cached",)), str(tmp_path / "a"))
    head = tmp_path / "elsewhere.safetensors"
    shutil.move(tmp_path / "a/linear_cached/coloured/head.safetensors", head)
    given = ask(weights, data, ("linear", "robustness"), head=str(head), **variants(tmp_path))
    found = evaluate(given, str(tmp_path / "b"))
    assert values(found, "linear") == values(trained, "linear_cached")
    assert entry(found, "linear")["metrics"]["top-1"]["chosen_on"] == ""
    assert not list((tmp_path / "b").rglob("train-*"))  # no features of train
    assert "after" not in entry(found, "robustness")["settings"]
    shutil.copy(head, tmp_path / "copy.safetensors")
    given.head = str(tmp_path / "copy.safetensors")
    del runs[:]
    evaluate(given, str(tmp_path / "b"))
    assert not runs
    other = write_weights(tmp_path / "other", seed=1)
    with pytest.raises(ConfigError, match=r"trained on other weights"):
        evaluate(ask(other, data, ("linear",), head=str(head)), str(tmp_path / "c"))


def test_a_released_head_has_as_many_classes_as_the_data(weights, data, tmp_path):
    rng = np.random.default_rng(0)
    width = 2 * backbone().model.dim

    def write(classes):
        path = tmp_path / f"{classes}.safetensors"
        weight = rng.standard_normal((classes, width)).astype(np.float32)
        LinearHead(weight, np.zeros(classes, np.float32), blocks=1, avgpool=True).save(path)
        return str(path)

    with pytest.raises(ConfigError, match=r"has 4 classes and the data 3"):
        evaluate(ask(weights, data, ("linear",), head=write(4)), str(tmp_path / "out"))
    named = tmp_path / "named.safetensors"
    bias = np.zeros(3, np.float32)
    weight = rng.standard_normal((3, width)).astype(np.float32)
    LinearHead(weight, bias, blocks=1, avgpool=True, class_names=("a", "b", "c")).save(named)
    with pytest.raises(ConfigError, match=r"the class 'a' where the data has 'blue'"):
        evaluate(ask(weights, data, ("linear",), head=str(named)), str(tmp_path / "out"))
    found = evaluate(ask(weights, data, ("linear",), head=write(3)), str(tmp_path / "out"))
    assert 0 <= values(found, "linear")["top-1"] <= 100


def test_a_head_of_one_block_begins_a_fine_tuning(weights, data, tmp_path):
    one = {"linear.blocks": (1,), "linear.avgpool": (False,)}
    found = evaluate(ask(weights, data, ("linear_cached",), **one), str(tmp_path / "a"))
    assert len(entry(found, "linear_cached")["notes"]["accuracy_by_classifier"]) == 13
    path = tmp_path / "a/linear_cached/coloured/head.safetensors"
    head = load_head(path)
    assert head.blocks == 1 and not head.avgpool and head.class_names == CLASSES
    settings = {"iterations": 1, "warmup_iterations": 0, "batch_size": 8, "group_size": 8}
    settings |= {"lr": 0.0, "min_lr": 0.0, "head": str(path)}
    begun = {f"finetune.{name}": value for name, value in settings.items()}
    tuned = evaluate(ask(weights, data, ("finetune",), **begun), str(tmp_path / "b"))
    given = evaluate(ask(weights, data, ("linear",), head=str(path)), str(tmp_path / "c"))
    assert values(tuned, "finetune") == values(given, "linear")


# ------------------------------------------------------------------------ what is computed again
def test_data_is_known_by_its_content_wherever_it_lies(weights, data, tmp_path, runs):
    protocols, v2 = ("linear_cached", "robustness"), variants(tmp_path)
    evaluate(ask(weights, data, protocols, **v2), str(tmp_path / "out"))
    assert runs == [("linear_cached", "coloured"), ("robustness", "imagenet_v2")]
    copy = tmp_path / "copy" / "coloured"
    shutil.copytree(data, copy)
    for path in (f"{data}/", copy):
        evaluate(ask(weights, path, protocols, **v2), str(tmp_path / "out"))
        evaluate(ask(weights, path, ("robustness",), **v2), str(tmp_path / "out"))
    assert len(runs) == 2
    save(copy / "test" / "red" / "9.png", 2)
    evaluate(ask(weights, copy, protocols, **v2), str(tmp_path / "out"))
    assert len(runs) == 4  # another test set


def test_training_continues_on_a_copy_of_the_data_and_with_another_test_set(
    weights, data, tmp_path, monkeypatch
):
    """The state of a killed training is of the train split alone."""
    copy = tmp_path / "copy" / "coloured"
    shutil.copytree(data, copy)
    save(copy / "test" / "red" / "9.png", 2)

    def die(*_):
        raise KeyboardInterrupt

    from dinov2_jax.eval.protocols import linear

    choose = linear.choose
    monkeypatch.setattr(linear, "choose", die)
    with pytest.raises(KeyboardInterrupt):
        evaluate(ask(weights, data, ("linear",)), str(tmp_path / "out"))
    assert list((tmp_path / "out/linear").rglob("*state.safetensors"))
    monkeypatch.setattr(linear, "choose", choose)
    found = evaluate(ask(weights, copy, ("linear",)), str(tmp_path / "out"))
    assert entry(found, "linear")["metrics"]["top-1"]["n"] == 13


def test_sets_with_pictures_of_their_own_are_not_judged_twice(weights, tmp_path, runs):
    for number in range(3):
        for side, ending in (("new", "png"), ("old", "jpg")):
            save(tmp_path / "t" / side / f"{number:04}.{ending}", number, noise=5)
    settings = {"retrieval.set": "amstertime", "retrieval.path": str(tmp_path / "t")}
    first = evaluate(ask(weights, "", ("retrieval",), **settings), str(tmp_path / "out"))
    settings["retrieval.path"] = str((tmp_path / "t").rename(tmp_path / "moved"))
    assert evaluate(ask(weights, "", ("retrieval",), **settings), str(tmp_path / "out")) == first
    assert runs == [("retrieval", "amstertime")]


def test_a_killed_transfer_goes_on_behind_its_last_set(weights, tmp_path, runs, monkeypatch):
    from dinov2_jax.heads.logistic import regression

    for name in ("dtd", "aircraft"):
        assert name in runner.transfer.TRANSFER_SETS
    root = tmp_path / "sets"
    for name in ("dtd", "other"):
        for split, count in (("train", 4), ("val", 3), ("test", 3)):
            names = []
            for label, texture in enumerate(("banded", "dotted", "woven")):
                for number in range(count):
                    file = f"{texture}/{split}_{number}.jpg"
                    save(root / name / "images" / file, label)
                    names.append(file)
            (root / name / "labels").mkdir(exist_ok=True)
            (root / name / "labels" / f"{split}1.txt").write_text("\n".join(names))
    sets = runner.transfer.TRANSFER_SETS
    monkeypatch.setitem(sets, "other", sets["dtd"])
    fit, fits = regression.evaluate, []

    def die_at_second(*arguments, **how):
        fits.append(1)
        if len(fits) == 2:
            raise KeyboardInterrupt
        return fit(*arguments, **how)

    monkeypatch.setattr(regression, "evaluate", die_at_second)
    config = ask(weights, "", ("transfer",), **{"transfer.path": str(root), "logreg.count": 2})
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, str(tmp_path / "out"))
    stored = json.loads((tmp_path / "out/results.json").read_text())
    assert entry(stored, "transfer", "dtd")["complete"]
    evaluate(config, str(tmp_path / "out"))
    assert runs == [("transfer", name) for name in ("dtd", "other", "other")]


def test_few_shot_keeps_finished_tries(weights, data, tmp_path, monkeypatch):
    from dinov2_jax.eval.protocols import few_shot

    train, calls = few_shot.train_cached, []

    def die_at_third(*arguments, **how):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*arguments, **how)

    monkeypatch.setattr(few_shot, "train_cached", die_at_third)
    settings = {"few_shot.tries": 2, "few_shot.per_class": (1, 2), "few_shot.linear_iterations": 2}
    config = ask(weights, data, ("few_shot",), **settings)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, str(tmp_path / "out"))
    found = evaluate(config, str(tmp_path / "out"))
    assert len(calls) == 5  # the third try twice
    monkeypatch.setattr(few_shot, "train_cached", train)
    whole = evaluate(config, str(tmp_path / "fresh"))
    assert values(found, "few_shot") == values(whole, "few_shot")
    assert not list((tmp_path / "out").rglob("trials.json"))


# --------------------------------------------------------------------------------- what is chosen
def test_val_chooses_where_a_folder_has_it(weights, tmp_path, capsys):
    root = write_set(tmp_path / "three", train=8, val=4, test=4)
    few = {"few_shot.tries": 1, "few_shot.per_class": (2,), "few_shot.linear_iterations": 2}
    config = ask(weights, root, ("linear_cached", "few_shot"), **few)
    found = evaluate(config, str(tmp_path / "out"))
    for protocol in ("linear_cached", "few_shot"):
        chosen = {m["chosen_on"] for m in entry(found, protocol)["metrics"].values()}
        assert chosen == {"val"}
        assert set(entry(found, protocol)["settings"]["splits"]) == {"train", "val", "test"}
    assert "(chosen on test)" not in capsys.readouterr().out
    shutil.rmtree(root / "val")
    found = evaluate(config, str(tmp_path / "without"))
    assert "(chosen on test)" in capsys.readouterr().out
    assert "(chosen on test)" in (tmp_path / "without/results.html").read_text()


def test_few_shot_reports_one_head_over_all_tries(weights, tmp_path, monkeypatch):
    """The best of 52 heads in each try is above the mean of any one head."""
    from dinov2_jax.eval.protocols import few_shot

    tries = [
        {"test": {"knn": {"1": 50.0}, "linear": {"a": 90.0, "b": 60.0}}, "val": {"linear": {}}},
        {"test": {"knn": {"1": 50.0}, "linear": {"a": 20.0, "b": 70.0}}, "val": {"linear": {}}},
    ]
    assert few_shot._choose(tries, "linear", "test") == ("b", 65.0)  # not (90 + 70) / 2
    for one, (a, b) in zip(tries, ((10, 0), (20, 10)), strict=True):
        one["val"]["linear"] = {"a": a, "b": b}
    assert few_shot._choose(tries, "linear", "val") == ("a", 55.0)


# ----------------------------------------------------------------------------- results of two sets
def test_results_of_two_data_sets_stand_side_by_side(weights, data, tmp_path, capsys):
    other = write_set(tmp_path / "noisy", noise=250, train=8, test=4)
    first = evaluate(ask(weights, data, ("knn",)), str(tmp_path / "out"))
    both = evaluate(ask(weights, other, ("knn",)), str(tmp_path / "out"))
    assert set(both["results"]["knn"]) == {"coloured", "noisy"}
    assert entry(both, "knn", "coloured") == entry(first, "knn")
    lines = capsys.readouterr().out.splitlines()
    head, *rows = (line.split() for line in lines if re.match(r"protocol|knn ", line))
    assert {"data", "n", "unit", "better"} <= set(head)
    assert {"coloured", "noisy"} <= {row[1] for row in rows}
    page = (tmp_path / "out/results.html").read_text()
    assert "<td>noisy</td>" in page and "<td>coloured</td>" in page
    evaluate(ask(weights, other, ("knn",), **{"knn.temperature": 0.1}), str(tmp_path / "out"))
    assert re.search(r"knn on noisy: replaces .*temperature: 0.07 -> 0.1", capsys.readouterr().out)


def test_two_jobs_that_share_a_folder_keep_each_others_results(
    weights, data, tmp_path, monkeypatch
):
    out, inner = str(tmp_path / "out"), []
    write = runner.Results.write

    def write_behind_another_job(self):
        if not inner:
            inner.append(1)
            evaluate(ask(weights, data, ("logreg",), **{"logreg.count": 2}), out)
        write(self)

    monkeypatch.setattr(runner.Results, "write", write_behind_another_job)
    evaluate(ask(weights, data, ("knn",)), out)
    stored = json.loads((tmp_path / "out/results.json").read_text())
    assert set(stored["results"]) == {"knn", "logreg"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "no results file"),
        ('{"a": 1}', "no results file"),
        ('{"format": 2, "results"', "cut or no results file"),
        ('{"about": {}, "versions": {}, "protocols": {}}', "earlier version.*move it away"),
    ],
)
def test_a_foreign_or_cut_results_file_is_one_sentence(weights, data, tmp_path, text, says):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ConfigError, match=f"results.json .*{says}.*--workdir"):
        evaluate(ask(weights, data, ("knn",)), str(tmp_path))


def test_what_is_not_finite_is_null_in_the_file_and_a_dash_in_the_table(tmp_path):
    from dinov2_jax.eval.results import Results, table
    from dinov2_jax.eval.task import Metric

    results = Results(tmp_path / "results.json", {"weights": {}})
    results.begin("retrieval", "roxford5k", {})
    results.add("retrieval", "roxford5k", Metric("mAP, easy", float("nan"), n=3))
    results.add("retrieval", "roxford5k", {"deep": [np.float32("inf"), np.arange(2)]})
    results.write()

    def refuse(text):
        raise AssertionError(text)

    stored = json.loads((tmp_path / "results.json").read_text(), parse_constant=refuse)
    assert values(stored, "retrieval") == {"mAP, easy": None}
    assert entry(stored, "retrieval")["notes"]["deep"] == [None, [0, 1]]
    assert " - " in table(stored["results"])


def test_errors_in_metres_say_that_less_is_better():
    from dinov2_jax.eval.results import table

    metric = {"value": 0.349, "unit": "m", "higher_is_better": False, "data": "nyu", "n": 654}
    metric |= {"chosen_on": "", "published": 0.298}
    text = table({"depth": {"nyu": {"metrics": {"RMSE": metric}}}})
    assert "0.349  m     lower   654  0.298" in text


# ------------------------------------------------------------------------------------- the pictures
def test_test_pictures_that_are_in_train_are_told(weights, data, tmp_path, capsys):
    root = tmp_path / "leaky"
    shutil.copytree(data, root)
    for number in range(2):
        shutil.copy(root / "train/red" / f"{number}.png", root / "test/red" / f"{number}.png")
    found = evaluate(ask(weights, root, ("knn",)), str(tmp_path / "out"))
    assert re.search(
        r"warning: leaky: 2 of 12 pictures of test \(16.7 %\)", capsys.readouterr().out
    )
    assert "2 of 12" in entry(found, "knn")["notes"]["warning"]
    assert "also in train" in (tmp_path / "out/results.html").read_text()
    evaluate(ask(weights, data, ("knn",)), str(tmp_path / "clean"))
    assert "warning" not in capsys.readouterr().out


def test_large_sets_are_compared_by_names_and_the_content_of_some(data, monkeypatch):
    from dinov2_jax.data.sources.open import open_source
    from dinov2_jax.eval import pictures

    train, test = (open_source("folder", str(data), s, "folders") for s in ("train", "test"))
    monkeypatch.setattr(pictures, "MOST_COMPARED", 0)
    assert pictures.overlap_warning(train, test) == ""  # same names, other pictures
    assert pictures.overlap_warning(train, train).startswith("about 24 of 24")


def test_headers_are_read_only_where_features_are_missing(weights, data, tmp_path, monkeypatch):
    from dinov2_jax.eval import pictures

    read, header = [], pictures._header_error
    monkeypatch.setattr(
        pictures, "_header_error", lambda *which: (read.append(which), header(*which))[1]
    )
    evaluate(ask(weights, data, ("knn",)), str(tmp_path / "out"))
    assert len(read) == 36
    evaluate(ask(weights, data, ("knn",), **{"knn.ks": (2,)}), str(tmp_path / "out"))
    assert len(read) == 36


# ---------------------------------------------------------------------------------------- the paper
WHOLE = {"imagenet": (1_281_167, 50_000), "food101": (75_750, 25_250)}


def paper(
    monkeypatch, protocol, metric, data="imagenet", sizes=(256, 224), counts=(), dim=384, **settings
):
    import dataclasses

    from dinov2_jax.eval.task import Context

    found = backbone()
    how = dataclasses.replace(found.preprocessing, resize_px=sizes[0], image_px=sizes[1])
    depth = {384: 12, 1536: 40}[dim]
    model = found.model.clone(dim=dim, depth=depth, heads=6, patch_size=14, registers=0)
    found = dataclasses.replace(found, model=model, preprocessing=how)
    context = Context(found, eval_config.get_config(), None)
    train, test = counts or WHOLE.get(data, (None, None))
    counts = {"train": train, "test": test}
    return published.paper_value(context, protocol, data, metric, settings, **counts)


def test_the_papers_figure_needs_the_papers_settings(monkeypatch):
    linear = {"on_pictures": True, "iterations": 12500, "batch_size": 1024, "rates": "code"}
    linear |= {"max_bad": 0, "blocks": (1, 4), "avgpool": (False, True)}
    assert paper(monkeypatch, "linear", "top-1", **linear) == 81.1
    for name, value in {
        "on_pictures": False,
        "iterations": 10,
        "rates": "paper",
        "blocks": (1,),
        "max_bad": 5,
    }.items():
        assert paper(monkeypatch, "linear", "top-1", **linear | {name: value}) is None
    assert paper(monkeypatch, "linear", "top-1", sizes=(224, 224), **linear) is None
    assert paper(monkeypatch, "linear", "top-5", **linear) is None
    assert paper(monkeypatch, "linear", "top-1", data="", **linear) is None
    for counts in ((1_281_167, 49_999), (128_116, 50_000), (36, 9), (None, None)):
        assert paper(monkeypatch, "linear", "top-1", counts=counts, **linear) is None
    larger = linear | {"sizes": (512, 448)}
    assert paper(monkeypatch, "linear", "top-1", dim=1536, **larger) == 86.7
    assert paper(monkeypatch, "linear", "top-1", dim=384, **larger) is None
    fine = {"counts": (437_513, 24_426), "data": "inaturalist2018"}
    assert paper(monkeypatch, "linear", "top-1", **fine, **linear) == 69.0
    logreg = {"log10_c": (-6.0, 5.0), "count": 45, "max_bad": 0}
    assert paper(monkeypatch, "logreg", "top-1", data="food101", **logreg) == 89.1
    narrow = logreg | {"log10_c": (-1.0, 5.0)}
    assert paper(monkeypatch, "logreg", "top-1", data="food101", **narrow) is None
    assert paper(monkeypatch, "logreg", "top-1", data="food101", counts=(30, 12), **logreg) is None
    knn = {"temperature": 0.07, "leave_one_out": False, "max_bad": 0}
    assert paper(monkeypatch, "knn", "top-1", **knn) == 79.0
    assert paper(monkeypatch, "knn", "top-1", **knn | {"temperature": 5.0}) is None


def test_every_published_figure_has_its_set_and_protocol():
    stored = published._published()
    for protocol, data, _ in stored["rows"]:
        assert protocol in stored["protocols"] and data in stored["pictures"]


# ----------------------------------------------------------------------------------------- the page
def test_curves_show_the_chosen_point(weights, data, tmp_path):
    found = evaluate(
        ask(weights, data, ("logreg", "linear_cached"), **{"logreg.count": 5}), str(tmp_path)
    )
    page = (tmp_path / "results.html").read_text()
    [sweep] = entry(found, "logreg")["curves"]
    [points] = sweep["lines"].values()
    value = dict(map(tuple, points))[entry(found, "logreg")["notes"]["C"]]
    assert sweep["log_x"] and sweep["chosen"] == ["", entry(found, "logreg")["notes"]["C"]]
    caption = re.search(r"<figcaption>Logistic regression.*?<span>(.*?)</span>", page)[1]
    assert f"{value:.4g} %" in caption
    [rates] = entry(found, "linear_cached")["curves"]
    assert len(rates["lines"]) == 4 and rates["log_x"]
    assert page.count("<figure>") == 2 and 'class="start"' not in page
