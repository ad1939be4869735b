"""Names of the labs against transformers': told by the names, reversible, and right by what the models compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lab_models import BASE, LABS, build_lab
from lab_pairs import is_head, loaded_twin, modern, twin
from models import CLASSES, build, shapes, shapes_of, transformers

from speechft_merge.layouts import alignment, fairseq, naming, torchaudio
from speechft_merge.layouts.naming import Naming
from speechft_merge.layouts.table import Table
from speechft_merge.layouts.weight_norm import canonical

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from speechft_merge.layouts.alignment import Alignment


def read_naming(names: Iterable[str]) -> Naming:
    """Of names alone: the scheme shows without shapes."""
    return naming.read_naming(dict.fromkeys(names, ()))


def align(base: Mapping[str, tuple[int, ...]], finetuned: Mapping[str, tuple[int, ...]]) -> Alignment:
    return alignment.align(naming.read_naming(base), naming.read_naming(finetuned))


def undoing(table: Table) -> Table:
    return Table(tuple((theirs, ours) for ours, theirs in table.rows))


# what the models compute
@pytest.mark.parametrize("kind", LABS)
def test_a_renamed_model_gives_the_hidden_states_of_the_labs(kind: str) -> None:
    lab = LABS[kind]
    model = build_lab(lab)
    waves = torch.randn(2, 4000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = loaded_twin(lab, model)(waves, output_hidden_states=True)
        ours = model(waves)
    assert len(ours) == len(theirs.hidden_states) == lab.layers + 1
    for a, b in zip(ours, [*theirs.hidden_states[:-1], theirs.last_hidden_state], strict=True):
        assert a.std() > 0.1
        assert torch.max(torch.abs(a - b)) < 1e-4


def test_the_oracle_tells_two_exchanged_tensors_apart() -> None:
    """Of the same shape, and so beyond what any loader would notice."""
    lab = LABS["WavLM"]
    model = build_lab(lab)
    waves = torch.randn(1, 4000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(waves)[-1]
        layer = model.encoder.layers[1]
        layer.self_attn_layer_norm, layer.final_layer_norm = layer.final_layer_norm, layer.self_attn_layer_norm
        assert torch.max(torch.abs(model(waves)[-1] - before)) > 1e-2


# there and back
@pytest.mark.parametrize("kind", [*LABS, "DeCoAR 2.0"])
def test_the_table_of_a_model_undone_gives_its_names(kind: str) -> None:
    names = list(build_lab(LABS.get(kind, BASE["decoar2"])).state_dict())
    renamed = list(read_naming(names).full.values())
    assert len(set(renamed)) == len(names)
    back = undoing(fairseq.table(renamed))
    assert [back.renamed(name) for name in renamed] == names


@pytest.mark.parametrize("kind", LABS)
def test_the_names_of_transformers_come_back_from_the_labs(kind: str) -> None:
    names = [canonical(name) for name in twin(LABS[kind]).state_dict()]
    theirs = [undoing(fairseq.table(names)).renamed(name) for name in names]
    assert set(theirs) <= set(build_lab(LABS[kind]).state_dict())
    assert list(read_naming(theirs).full.values()) == names


def test_the_names_of_data2vec_come_back_from_the_labs() -> None:
    names = [canonical(name) for name in shapes("Data2VecAudio", "Model")]
    theirs = [undoing(fairseq.table(names)).renamed(name) for name in names]
    assert "encoder.pos_conv.2.0.weight" in theirs
    assert list(read_naming(theirs).full.values()) == names


WORDS = st.lists(st.sampled_from("a b encoder layers 0 1 12 weight".split()), min_size=1, max_size=5).map(".".join)


@given(WORDS)
def test_a_table_is_undone_by_its_reverse(name: str) -> None:
    table = Table((("a.*.b", "x.*"), ("a", "y"), ("encoder.layers.*", "blocks.*"), ("encoder", "z")))
    assert undoing(table).renamed(table.renamed(name)) == name


def test_rows_replace_whole_words_and_the_longest_row_wins() -> None:
    table = Table.parse("""
        fc           dense
        layers.*.fc  blocks.*.inner
        layers       stack
    """)
    assert table.renamed("fc.weight") == "dense.weight"
    assert table.renamed("fc1.weight") == "fc1.weight"
    assert table.renamed("layers.11.fc.weight") == "blocks.11.inner.weight"
    assert table.renamed("layers.x.fc.weight") == "stack.x.fc.weight"
    assert table.renamed("fc") == "dense"
    assert table.renamed("a.fc.weight") == "a.fc.weight"


# torchaudio
def to_torchaudio(names: Collection[str]) -> dict[str, str]:
    """transformers' names as torchaudio's importer assigns them: module by module."""
    modules = {"feature_projection.": "encoder.feature_projection.", "encoder.": "encoder.transformer."}

    def renamed(name: str) -> str:
        return next((new + name.removeprefix(old) for old, new in modules.items() if name.startswith(old)), name)

    return {name: renamed(name) for name in names}


@pytest.mark.parametrize("kind", [kind for kind in LABS if "WavLM" not in kind])
def test_names_of_torchaudio_are_told_and_undone(kind: str) -> None:
    names = [canonical(name) for name in twin(LABS[kind]).state_dict() if name != "masked_spec_embed"]
    theirs = to_torchaudio(names)
    found = read_naming([*theirs.values(), "aux.weight", "aux.bias"])
    assert found.layout == "torchaudio"
    assert found.full == {new: old for old, new in theirs.items()} | {
        "aux.weight": "lm_head.weight",
        "aux.bias": "lm_head.bias",
    }
    back = undoing(torchaudio.table(list(found.full.values())))
    assert all(back.renamed(transformed) == own for own, transformed in found.full.items())


def test_the_head_of_old_torchaudio_files_is_known() -> None:
    names = ["encoder.transformer.pos_conv_embed.conv.bias", "encoder.readout.weight"]
    assert read_naming(names).full["encoder.readout.weight"] == "lm_head.weight"


# telling the scheme
@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family, kinds in CLASSES.items() for kind in kinds])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_no_class_of_transformers_is_taken_for_a_labs(family: str, kind: str, prefix: str) -> None:
    names = [prefix + name for name in shapes(family, kind)]
    found = read_naming(names)
    assert (found.layout, found.roots) == ("transformers", ())
    assert found.full == {name: canonical(name) for name in names}


@pytest.mark.parametrize("prefix", ["", "model.", "encoder.model.", "w2v_encoder.w2v_model.", "0.", "heads.0.net."])
@pytest.mark.parametrize("kind", [*LABS, "DeCoAR 2.0"])
def test_the_labs_names_are_told_under_any_prefix(kind: str, prefix: str) -> None:
    names = list(build_lab(LABS.get(kind, BASE["decoar2"])).state_dict())
    bare = read_naming(names).full
    found = read_naming([prefix + name for name in names])
    assert (found.layout, found.roots) == ("fairseq", (prefix,))
    assert found.full == {prefix + name: prefix + bare[name] for name in names}


def test_teacher_and_student_in_one_file_are_both_renamed() -> None:
    names = list(build_lab(BASE["hubert"]).state_dict())
    found = read_naming([*(f"student.{name}" for name in names), *(f"teacher.{name}" for name in names)])
    assert found.roots == ("student.", "teacher.")
    assert found.full["teacher.encoder.layers.1.fc1.weight"] == (
        "teacher.encoder.layers.1.feed_forward.intermediate_dense.weight"
    )


def test_a_copy_beside_the_encoder_is_renamed_by_itself() -> None:
    """An average of the weights, kept behind a prefix of its own."""
    names = list(build_lab(BASE["hubert"]).state_dict())
    bare = read_naming(names).full
    found = read_naming([*names, *(f"ema.{name}" for name in names)])
    assert found.roots == ("", "ema.")
    assert found.full == bare | {f"ema.{name}": f"ema.{bare[name]}" for name in names}


def test_names_that_would_fall_together_stay_as_they_are() -> None:
    names = ["encoder.pos_conv.0.bias", "mask_emb", "masked_spec_embed"]
    assert read_naming(names).full == {name: name for name in names}


# parts
@pytest.mark.parametrize("kind", [*LABS, "DeCoAR 2.0"])
def test_parts_are_those_of_the_published_structure(kind: str) -> None:
    lab = LABS.get(kind, BASE["decoar2"])
    names = naming.read_naming(shapes_of(build_lab(lab).state_dict())).under()
    found = {own: name.location for own, name in names.items() if not is_head(own)}
    first = {name: location.part for name, location in found.items()}
    expected = {
        "feature_extractor.": "cnn",
        "post_extract_proj.": "projection",
        "layer_norm.": "projection",
        "mask_emb": "other",
        "encoder.pos_conv.": "pos_conv",
        "encoder.layers.": "layers",
        "encoder.layer_norm.": "final_norm",
    }
    assert first == {name: next(p for start, p in expected.items() if name.startswith(start)) for name in first}
    assert {location.block for location in found.values()} == {None, 0, 1}
    assert ("cnn" in first.values()) == (lab.family != "decoar2")


# matching across schemes
PREFIXES = ("", "model.", "encoder.model.", "w2v_encoder.w2v_model.")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", LABS)
def test_a_labs_fine_tune_is_matched_whole_with_a_base_of_transformers(kind: str, prefix: str) -> None:
    lab = LABS[kind]
    model = build_lab(lab)
    base = {name: tuple(t.shape) for name, t in twin(lab).state_dict().items()}
    finetuned = {prefix + name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = align(base, finetuned)
    assert set(found.pairs) == set(base)
    assert {name for name in found.pairs.values() if not is_head(name.removeprefix(prefix))} == set(
        found.pairs.values()
    )
    for name, other in found.pairs.items():
        assert modern(read_naming(finetuned).full[other]) == prefix + name
    assert found.finetuned_prefix == prefix
    back = align(finetuned, base)
    assert back.pairs == {other: name for name, other in found.pairs.items()}


@pytest.mark.parametrize(("ours", "theirs"), [(a, b) for a in PREFIXES for b in PREFIXES])
def test_two_of_the_labs_files_are_matched_under_any_two_prefixes(ours: str, theirs: str) -> None:
    names = {name: tuple(t.shape) for name, t in build_lab(BASE["wav2vec2"]).state_dict().items()}
    heads = {name for name in names if is_head(name)}
    found = align({ours + n: s for n, s in names.items()}, {theirs + n: s for n, s in names.items()})
    assert found.pairs == {ours + name: theirs + name for name in names if name not in heads}
    assert found.heads == {ours + name: theirs + name for name in heads}
    bare = read_naming(names).full
    relative = {own: name.canonical for own, name in found.base_names.items() if not name.is_head}
    assert relative == {ours + name: bare[name] for name in names if name not in heads}
    assert (found.base_prefix, found.finetuned_prefix) == (ours, theirs)


def test_the_quantizer_of_wav2vec2_is_matched_as_a_head() -> None:
    """transformers has it beside the encoder's prefix, the labs among the encoder's names."""
    theirs = {name: tuple(t.shape) for name, t in build("Wav2Vec2", "ForPreTraining").state_dict().items()}
    rename = undoing(fairseq.table([canonical(name.removeprefix("wav2vec2.")) for name in theirs])).renamed
    ours = {rename(canonical(name.removeprefix("wav2vec2."))): shape for name, shape in theirs.items()}
    found = align(theirs, ours)
    assert {name: other for name, other in found.heads.items() if name.startswith(("quantizer", "project"))} == {
        "quantizer.codevectors": "quantizer.vars",
        "quantizer.weight_proj.weight": "quantizer.weight_proj.weight",
        "quantizer.weight_proj.bias": "quantizer.weight_proj.bias",
        "project_q.weight": "project_q.weight",
        "project_q.bias": "project_q.bias",
        "project_hid.weight": "final_proj.weight",
        "project_hid.bias": "final_proj.bias",
    }


def test_the_head_of_a_ctc_fine_tune_is_matched_with_transformers() -> None:
    theirs = {name: tuple(t.shape) for name, t in build("Wav2Vec2", "ForCTC").state_dict().items()}
    rename = undoing(fairseq.table([canonical(name.removeprefix("wav2vec2.")) for name in theirs])).renamed
    ours = {
        f"w2v_encoder.w2v_model.{rename(canonical(name.removeprefix('wav2vec2.')))}": shape
        for name, shape in theirs.items()
        if name.startswith("wav2vec2.")
    } | {"w2v_encoder.proj.weight": theirs["lm_head.weight"], "w2v_encoder.proj.bias": theirs["lm_head.bias"]}
    assert align(theirs, ours).heads == {
        "lm_head.weight": "w2v_encoder.proj.weight",
        "lm_head.bias": "w2v_encoder.proj.bias",
    }


def test_transformers_is_there() -> None:
    """The oracle of this file is a real one."""
    assert hasattr(transformers(), "WavLMModel")
