"""The library's spine: a merge that is open tells all before it writes, and closes its files whatever happens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from descriptors import nothing_stays_open, raising
from options import UNSYNCED

from speechft_merge import (
    Merge,
    MergeOptions,
    MergeResult,
    ProbeRequest,
    Recipe,
    Report,
    compare,
    merge,
    merging,
    open_merge,
)
from speechft_merge.errors import CheckpointError, MismatchError, NotFoundError, OutputError, UsageError
from speechft_merge.executor.drift import Drift
from speechft_merge.recipe.rules import parse_rule
from speechft_merge.sources import LocalFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Pair, Run, SavePair, Snapshot, Tiny, Weights

    from speechft_merge.checkpoints import Checkpoint

RECIPE = Recipe(alpha=0.3, layer_alpha=(parse_rule("1=0.7"),))
SHARDED = replace(UNSYNCED, max_shard_size=50_000)
Compared = tuple[Merge, MergeResult, Report, list[str]]
"""A merge, what it wrote, the report on that, and what was opened for the report."""


@pytest.fixture
def unrelated(tiny: Tiny, tmp_path: Path) -> str:
    """Random weights under the names of the usual fine-tune."""
    return str(tiny.write(tmp_path / "unrelated", tiny.ctc(tiny.weights(seed=7))))


# Open, look, write.


@pytest.mark.parametrize("options", [UNSYNCED, SHARDED], ids=["one file", "shards"])
def test_what_an_open_merge_writes_is_what_merge_makes(
    options: MergeOptions, pair: Pair, tmp_path: Path, snapshot: Snapshot
) -> None:
    made = merge(*pair.args, tmp_path / "merged", RECIPE, options=options)
    with open_merge(*pair.args, RECIPE, options) as opened:
        written = opened.write(tmp_path / "written")
    assert snapshot(tmp_path / "written") == snapshot(tmp_path / "merged")
    assert written == replace(made, output=tmp_path / "written")


def test_all_that_is_decided_is_known_before_anything_is_written(
    pair: Pair, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with open_merge(*pair.args, RECIPE, SHARDED) as opened:
        counts = opened.plan.counts
        assert (counts["interpolated"], counts["left out"]) == (len(tiny.read(pair.base)), 2)
        assert [relation.unrelated for relation in opened.relations] == [False]
        assert opened.workers.count == 1
        assert opened.findings == ()
        told = {file.name: file.size for file in opened.files.files}
        companions = dict(opened.companions)
        assert [*tmp_path.iterdir()] == []
        result = opened.write("out")
    assert len(told) > 1
    assert told == {path.name: path.stat().st_size for path in Path("out").glob("*.safetensors")}
    assert {name: Path("out", name).read_bytes() for name in companions} == companions
    assert {key: result.manifest.counts[key] for key in counts} == counts


def test_several_outputs_are_written_from_one_opened_merge(
    pair: Pair, tmp_path: Path, snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_merge(*pair.args, RECIPE, UNSYNCED) as opened:
        reopened = count_openings(monkeypatch)
        first, second = (opened.write(tmp_path / name) for name in ("first", "second"))
    assert reopened == []
    assert (first.already_done, second.already_done) == (False, False)
    assert first.drifts == second.drifts
    assert snapshot(tmp_path / "first") == snapshot(tmp_path / "second")


@pytest.mark.parametrize("overwrite", [False, True])
def test_written_again_a_merge_is_already_done(
    overwrite: bool, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_merge(*pair.args, RECIPE, replace(UNSYNCED, overwrite=overwrite)) as opened:
        first = opened.write(tmp_path / "out")
        changed = (tmp_path / "out/model.safetensors").stat().st_mtime_ns
        monkeypatch.setattr("speechft_merge.merging.execute", never)
        again = opened.write(tmp_path / "out")
    assert (first.already_done, again.already_done) == (False, True)
    assert again.manifest == first.manifest
    assert (tmp_path / "out/model.safetensors").stat().st_mtime_ns == changed


def test_a_single_fine_tune_is_given_as_it_is_or_in_a_list(pair: Pair, tmp_path: Path) -> None:
    base, finetuned = pair.args
    several: list[Any] = [finetuned, [finetuned], (finetuned,)]
    for given in several:
        with open_merge(base, given) as opened:
            assert [model.reference for model in opened.models] == pair.args
    results = [merge(base, given, tmp_path / "out", options=UNSYNCED) for given in several]
    assert [result.already_done for result in results] == [False, True, True]


def test_models_are_given_as_text_or_as_paths(pair: Pair, tmp_path: Path) -> None:
    base, finetuned = map(Path, pair.args)
    models: list[Any] = [finetuned, [finetuned], pair.args[1]]
    results = [merge(base, given, tmp_path / "out", options=UNSYNCED) for given in models]
    assert [result.already_done for result in results] == [False, True, True]


def test_without_a_fine_tune_there_is_nothing_to_merge(pair: Pair) -> None:
    with pytest.raises(UsageError, match="a fine-tuned model is missing"):
        open_merge(pair.args[0], [])


# Overwriting an output and merging what is unrelated are two decisions.


def test_to_overwrite_is_no_leave_to_merge_what_is_unrelated(
    unrelated: str, pair: Pair, tmp_path: Path, snapshot: Snapshot
) -> None:
    merge(*pair.args, tmp_path / "out", options=UNSYNCED)
    before = snapshot(tmp_path)
    with raising(MismatchError, match="is not a fine-tune of"):
        merge(pair.args[0], unrelated, tmp_path / "out", options=replace(UNSYNCED, overwrite=True))
    assert snapshot(tmp_path) == before


def test_to_merge_what_is_unrelated_is_no_leave_to_overwrite(
    unrelated: str, pair: Pair, tmp_path: Path, snapshot: Snapshot
) -> None:
    merge(*pair.args, tmp_path / "out", options=UNSYNCED)
    before = snapshot(tmp_path)
    with raising(OutputError, match="holds another merge"):
        merge(pair.args[0], unrelated, tmp_path / "out", options=replace(UNSYNCED, allow_unrelated=True))
    assert snapshot(tmp_path) == before


def test_with_both_an_unrelated_merge_takes_the_place_with_a_warning(
    unrelated: str, pair: Pair, tmp_path: Path
) -> None:
    earlier = merge(*pair.args, tmp_path / "out", options=UNSYNCED)
    both = replace(UNSYNCED, overwrite=True, allow_unrelated=True)
    result = merge(pair.args[0], unrelated, tmp_path / "out", options=both)
    assert result.manifest.merge_id != earlier.manifest.merge_id
    assert len(result.findings) == 1
    assert "is not a fine-tune of" in result.findings[0].text


# Compare what was written.


def count_openings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is opened from now on: the references of checkpoints, and the paths of local weight files."""
    opened: list[str] = []
    open_checkpoint, initialise = merging.open_checkpoint, LocalFile.__init__

    def counted(reference: str, *args: Any) -> Checkpoint:
        opened.append(reference)
        return open_checkpoint(reference, *args)

    def noted(self: LocalFile, path: Path, *args: Any, **named: Any) -> None:
        if path.suffix == ".safetensors":
            opened.append(str(path))
        initialise(self, path, *args, **named)

    monkeypatch.setattr(merging, "open_checkpoint", counted)
    monkeypatch.setattr(LocalFile, "__init__", noted)
    return opened


def never(*_: object, **__: object) -> None:
    pytest.fail("this was done already")  # no Exception: a merge that fails looks whether an equal one was faster


@pytest.fixture
def compared(
    save_pair: SavePair, few_clips: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Compared:
    with open_merge(*save_pair("Hubert", "ForCTC"), RECIPE, UNSYNCED) as opened:
        result = opened.write(tmp_path / "out")
        openings = count_openings(monkeypatch)
        monkeypatch.setattr("speechft_merge.similarity.models.execute", never)
        return opened, result, opened.compare(ProbeRequest(paths=few_clips), result), openings


def test_after_writing_only_the_output_is_opened_to_be_compared(compared: Compared, tmp_path: Path) -> None:
    assert compared[3] == [str(tmp_path / "out"), str(tmp_path / "out/model.safetensors")]


def test_a_report_on_an_output_is_put_beside_it(compared: Compared, tmp_path: Path) -> None:
    report = compared[2]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"similarity.json", "similarity.png", "speechft_merge.json", "model.safetensors"}
    assert report.models["merged"] == "out"
    assert "## What the merge did to the features" in (tmp_path / "out/README.md").read_text()


def test_a_report_has_the_drifts_that_the_merge_measured(
    compared: Compared,
) -> None:
    """Not measured again. What stands before the blocks has rows of its own in the merge's table, here it has one."""
    opened, result, report, _ = compared
    rows = {row.key: row.drift for row in result.manifest.layers}
    before, *blocks = report.layers
    assert [layer.key.label for layer in blocks] == ["0", "1"]
    assert [layer.drift for layer in blocks] == [rows[layer.key] for layer in blocks]
    rest = [result.drifts[tensor.name] for tensor in opened.plan.tensors if tensor.location.block is None]
    assert before.drift == Drift.relative(rest) != 0


def test_without_an_output_the_merge_is_carried_out_in_memory(
    save_pair: SavePair, few_clips: tuple[Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, request = save_pair("Hubert", "ForCTC"), ProbeRequest(paths=few_clips)
    monkeypatch.chdir(tmp_path)
    with open_merge(*models, RECIPE) as opened:
        openings = count_openings(monkeypatch)
        report = opened.compare(request)
        assert openings == []
    assert [*tmp_path.iterdir()] == []
    assert report.layers == compare(*models, request=request, recipe=RECIPE).layers


# Nothing stays open.


def test_a_merge_that_is_done_has_closed_its_files(pair: Pair, tmp_path: Path) -> None:
    with nothing_stays_open():
        merge(*pair.args, tmp_path / "out", options=SHARDED)
        merge(*pair.args, tmp_path / "out", options=SHARDED)
        with open_merge(*pair.args) as opened:
            opened.write(tmp_path / "other")


def test_an_opened_merge_holds_its_files_until_it_is_closed(pair: Pair) -> None:
    with nothing_stays_open():
        opened = open_merge(*pair.args)
        with pytest.raises(AssertionError), nothing_stays_open():
            other = open_merge(*pair.args)
        other.close()
        opened.close()
        opened.close()


def reshaped(weights: Weights) -> Weights:
    """The same, with a tensor of another shape."""
    return weights | {"encoder.layers.1.feed_forward.output_dense.weight": np.ones((32, 48), np.float32)}


@pytest.mark.parametrize("entry", [open_merge, lambda *models: merge(models[0], models[1], "out", *models[2:])])
def test_models_that_cannot_be_merged_are_closed(
    entry: Callable[..., Any], unrelated: str, pair: Pair, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base, finetuned = pair.args
    other = str(tiny.write(tmp_path / "other", reshaped(tiny.weights())))
    with raising(UsageError, match="2 weights for 1 fine-tuned model"):
        entry(base, finetuned, Recipe(weight=(1.0, 2.0)))
    with raising(UsageError, match="matches nothing"):
        entry(base, finetuned, Recipe(layer_alpha=(parse_rule("nonsense=1"),)))
    with raising(MismatchError, match="is not a fine-tune of"):
        entry(base, unrelated)
    with raising(MismatchError, match="another shape"):
        entry(base, other)
    with raising(NotFoundError, match="nowhere"):
        entry(base, [finetuned, str(tmp_path / "nowhere")])
    assert not Path("out").exists()


@pytest.mark.parametrize("options", [UNSYNCED, SHARDED], ids=["one file", "shards"])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_nan_that_is_met_while_writing_leaves_no_file_open(
    workers: int, options: MergeOptions, tiny: Tiny, tmp_path: Path
) -> None:
    base = tiny.weights()
    finetuned = tiny.finetuned(base)
    finetuned[max(base)][-1] = np.nan
    models = [str(tiny.write(tmp_path / name, weights)) for name, weights in (("a", base), ("b", finetuned))]
    with raising(MismatchError, match="holds nan"):
        merge(models[0], models[1], tmp_path / "out", options=replace(options, workers=workers))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("options", [UNSYNCED, replace(UNSYNCED, overwrite=True)], ids=["", "overwrite"])
def test_an_output_that_may_not_be_replaced_leaves_no_file_open(
    options: MergeOptions, pair: Pair, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.tex").write_text("years of work")
    with raising(OutputError, match="files that no merge wrote"):
        merge(*pair.args, tmp_path / "out", options=options)
    with open_merge(*pair.args, options=options) as opened:
        with raising(OutputError, match="files that no merge wrote"):
            opened.write(tmp_path / "out")
        with raising(UsageError, match="overlap"):
            opened.write(pair.base)
        assert not opened.write(tmp_path / "another").already_done


def test_a_model_that_cannot_be_compared_leaves_no_file_open(pair: Pair, tiny: Tiny, tmp_path: Path) -> None:
    import speechft_merge.similarity.comparison  # noqa: F401  (torch opens files as it is imported)

    folders = [tiny.write(tmp_path / path.name, tiny.read(path), None) for path in (pair.base, pair.finetuned)]
    models = [str(folder / "model.safetensors") for folder in folders]
    with raising(CheckpointError, match=r"there is no config\.json"):
        compare(*models)
    with open_merge(*models, options=UNSYNCED) as opened:
        result = opened.write(tmp_path / "out")
        with raising(CheckpointError, match=r"there is no config\.json"):
            opened.compare(result=result)
    with raising(NotFoundError, match="nowhere"):
        compare(*pair.args, str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("inspect {base}", 0),
        ("inspect {base} {finetuned}", 0),
        ("inspect {base} nowhere", 66),
        ("inspect {base} {other}", 0),
        ("{base} {finetuned} --dry-run", 0),
        ("{base} {finetuned} --dry-run --json", 0),
        ("{base} {finetuned} --dry-run --weight 1 --weight 2", 2),
        ("{base} {other} --dry-run", 65),
        ("{base} {finetuned} -o out", 0),
    ],
)
def test_a_command_closes_what_it_opened(
    command: str, code: int, pair: Pair, tiny: Tiny, run: Run, tmp_path: Path
) -> None:
    other = tiny.write(tmp_path / "other", reshaped(tiny.weights()))
    with nothing_stays_open():
        ran = run(*command.format(base=pair.base, finetuned=pair.finetuned, other=other).split())
    assert ran.code == code, ran.err
