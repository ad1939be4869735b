"""Words that wrappers put into names are seen through, wherever they stand; other words never are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lab_models import BASE, build_lab
from models import build, shapes, shapes_of

from speechft_merge.layouts.alignment import align
from speechft_merge.layouts.naming import read_naming
from speechft_merge.layouts.weight_norm import canonical
from speechft_merge.layouts.wrappers import WRAPPERS, unwrap, wrappers_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Shapes = Mapping[str, tuple[int, ...]]


class Average(torch.nn.Module):
    """A model whose encoder is an average of weights."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.net = torch.optim.swa_utils.AveragedModel(model)


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    for layer in model.encoder.layers:  # type: ignore[union-attr]
        layer.feed_forward = torch.compile(layer.feed_forward)
    return model


def parallel(model: torch.nn.Module) -> torch.nn.Module:
    model.encoder.layers[0] = torch.nn.DataParallel(model.encoder.layers[0])  # type: ignore[union-attr, index, operator]
    model.encoder.layers[1].attention = torch.compile(torch.nn.DataParallel(model.encoder.layers[1].attention))  # type: ignore[union-attr, index]
    return model


WRAPPED: dict[str, Callable[[torch.nn.Module], torch.nn.Module]] = {
    "some modules compiled": compiled,
    "some blocks parallel, one within a compiled module": parallel,
    "all compiled and parallel": lambda model: torch.compile(torch.nn.DataParallel(compiled(model))),  # type: ignore[return-value]
    "an average inside": Average,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
@pytest.mark.parametrize("how", WRAPPED)
def test_a_model_that_torch_wrapped_matches_whole(how: str) -> None:
    base = dict(shapes("Hubert", "Model"))
    wrapped = shapes_of(WRAPPED[how](build("Hubert")).state_dict())
    assert not {*base} & {*wrapped} or how.startswith("some")
    for found in (align(read_naming(base), read_naming(wrapped)), align(read_naming(wrapped), read_naming(base))):
        assert len(found.pairs) == len(base)
    names = read_naming(wrapped).unwrapped
    assert {name.removeprefix("net.") for name in names.values()} - {"n_averaged"} == {*base}


def test_the_words_are_those_of_torch() -> None:
    checkpoint = pytest.importorskip("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    fsdp = pytest.importorskip("torch.distributed.fsdp._common_utils")
    assert {checkpoint._CHECKPOINT_WRAPPED_MODULE, fsdp.FSDP_WRAPPED_MODULE} <= {*WRAPPERS}


@pytest.mark.parametrize("word", WRAPPERS)
def test_a_wrapped_name_is_read_as_if_it_were_not(word: str) -> None:
    names = dict(shapes("Hubert", "ForCTC"))
    inside = {name.replace(".attention.", f".{word}.attention.{word}.{word}."): shape for name, shape in names.items()}
    for wrapped in (inside, {f"{word}.{name}": shape for name, shape in inside.items()}):
        found = read_naming(wrapped)
        assert list(found.unwrapped.values()) == list(names)
        assert list(found.full.values()) == [canonical(name) for name in names]
        assert found.prefix == "hubert."
        assert found.stacks == {"encoder": [0, 1]}


def test_a_wrapped_file_of_a_lab_is_told() -> None:
    names = shapes_of(build_lab(BASE["wav2vec2"]).state_dict())
    wrapped = {
        f"module.{name}".replace(".pos_conv.", "._fsdp_wrapped_module.pos_conv._fpw_module."): shape
        for name, shape in names.items()
    }
    found = read_naming(wrapped)
    assert (found.layout, found.roots) == ("fairseq", ("",))
    assert list(found.full.values()) == list(read_naming(names).full.values())


@given(data=st.data())
def test_words_are_found_at_any_depth(data: st.DataObject) -> None:
    names = list(shapes("Whisper", "Model"))
    words = st.lists(st.sampled_from(WRAPPERS), max_size=2)
    wrapped = []
    for name in names:
        at = data.draw(st.integers(0, name.count(".")))
        parts = name.split(".")
        wrapped.append(".".join([*parts[:at], *data.draw(words), *parts[at:]]))
    assert list(read_naming(dict.fromkeys(wrapped, ())).unwrapped.values()) == names


def test_a_word_stays_where_two_names_would_become_one() -> None:
    names = ["encoder.weight", "module.encoder.weight", "encoder._orig_mod.bias"]
    assert wrappers_of(names) == {"_orig_mod"}
    assert list(read_naming(dict.fromkeys(names, ())).unwrapped.values()) == [*names[:2], "encoder.bias"]


def test_a_module_of_that_name_on_both_sides_breaks_no_match() -> None:
    names: Shapes = {f"encoder.layers.{i}.module.{name}.weight": (4, 4) for i in range(3) for name in ("fc1", "fc2")}
    names = {**names, "encoder.layers.1.module.gate": (4,), "encoder.layers.2.norm.module": (4,)}
    found = align(read_naming(names), read_naming({f"module.{name}": shape for name, shape in names.items()}))
    assert found.pairs == {name: f"module.{name}" for name in names}


@pytest.mark.parametrize("name", ["encoder.module", "modules.0.weight", "my_module.weight", "encoder._orig_mod_.bias"])
def test_other_words_and_names_of_tensors_stay(name: str) -> None:
    assert unwrap(name, wrappers_of([name])) == name


@pytest.mark.parametrize(
    ("names", "prefix", "module"),
    [
        (["module.hubert._orig_mod.encoder.w", "module.hubert._orig_mod.b.w"], "hubert.", "module.hubert._orig_mod"),
        (["module.hubert._orig_mod.encoder.w", "module.hubert.b.w"], "hubert.", "module.hubert"),
        (["module.encoder.w", "module.b.w"], "", "module"),
        (["encoder._orig_mod.w", "b.w"], "", ""),
        (["a.module.encoder.w", "b.w"], "a.", "a.module"),
    ],
)
def test_a_prefix_leads_to_the_innermost_module_that_has_it(names: list[str], prefix: str, module: str) -> None:
    assert read_naming(dict.fromkeys(names, ())).module(prefix) == module


def test_thousands_of_names_cost_milliseconds() -> None:
    names = [f"module.encoder.layers.{i}._fsdp_wrapped_module.fc{j}.weight" for i in range(500) for j in range(10)]
    start = time.process_time()
    words = wrappers_of(names)
    assert len({unwrap(name, words) for name in names}) == len(names)
    assert time.process_time() - start < 0.5
