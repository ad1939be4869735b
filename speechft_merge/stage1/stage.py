"""Stage 1 of Speech-FT, stable fine-tuning: what trains at which step, at which learning rate, for any torch model.

For the first tenth of the steps the head alone trains; then everything but the convolutional feature extractor does.
The learning rate warms up meanwhile, is held, and decays to nothing (Lin et al., IEEE TASLP 2026). In a loop of one's
own:

    stage = StableFineTuning(model, Schedule(total_steps=50_000))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    scheduler = stage.scheduler(optimizer)
    for step, batch in zip(range(50_000), batches):
        stage.begin(step)
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()

For transformers' Trainer, `callbacks=[StableFineTuningCallback()]` does the same (speechft_merge/stage1/trainer.py).

A step is one of the optimizer: with gradient accumulation, call `begin` and `scheduler.step` once for all its batches.
With DistributedDataParallel make the stage first, then wrap the model with `find_unused_parameters=True`: what is
frozen for a while has no gradient to wait for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speechft_merge.errors import UsageError
from speechft_merge.layouts.naming import read_naming
from speechft_merge.layouts.structure import canonical, is_head, place_of
from speechft_merge.stage1.schedule import Part, Schedule

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import torch


_WITHOUT_CNN = frozenset(["wav2vec2-bert"])
"""Model types of transformers that begin with filter banks."""


class StableFineTuning:
    """Stage 1 on one model.

    Making it already freezes the CNN and turns the encoder's layer drop and SpecAugment off. Parameters that do not
    train when it is made (Whisper's sinusoidal positions) are never made to.

    Args:
        model: any module with a speech encoder in it, with the names of transformers, fairseq, S3PRL or torchaudio.
        schedule: when what trains.
        encoder: the name of the submodule that is the encoder, such as `upstream.model`; found by itself if None.
        cnn: whether the encoder has a convolutional feature extractor. Those of w2v-BERT and DeCoAR 2.0 are known to
            have none.

    Raises:
        UsageError: there is no encoder, no CNN in an encoder that should have one, no head, or nothing left to train.
    """

    def __init__(
        self, model: torch.nn.Module, schedule: Schedule, *, encoder: str | None = None, cnn: bool = True
    ) -> None:
        self.model = model
        self.schedule = schedule
        named = dict(model.named_parameters())
        title = type(model).__name__
        self.encoder = find_encoder(named, title) if encoder is None else _named_encoder(model, encoder)
        self.parts = parts_of(named, self.encoder)
        """Name of each parameter -> the part that it belongs to."""
        self._ours = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        if cnn and "cnn" not in self.parts.values() and not _known_without_cnn(model, self.parts, self.encoder):
            raise UsageError(
                f"no convolutional feature extractor (feature_extractor.*) was found in {self.encoder!r} of "
                f"{title}; if it begins with filter banks, say cnn=False"
            )
        self._require_training_parts(title)
        quiet_encoder(model, self.encoder)
        for name, parameter in self._ours.items():
            if self.parts[name] == "cnn":
                _freeze(parameter)

    def _require_training_parts(self, title: str) -> None:
        training = {self.parts[name] for name in self._ours}
        if "encoder" not in training:
            raise UsageError(
                f"all of the encoder of {title} is frozen (requires_grad is False); leave the freezing to "
                f"StableFineTuning: an optimizer made without the encoder's parameters would never train them"
            )
        if "head" not in training and self.schedule.head_only_steps:
            raise UsageError(
                f"{title} has no head beside its encoder, so that nothing would train in the first "
                f"{self.schedule.head_only_steps} steps; use a class with a head, or head_only=0"
            )

    def begin(self, step: int) -> None:
        """Make exactly those parameters require gradients that train at this step, counted from 0.

        What does not train has no gradient afterwards, not even one of zeros: weight decay and momentum would move it.

        Raises:
            UsageError: the step is outside of the schedule.
        """
        if not 0 <= step < self.schedule.total_steps:
            raise UsageError(f"step {step} is outside of the {self.schedule.total_steps} steps of the schedule")
        for name, parameter in self._ours.items():
            if self.schedule.trains(self.parts[name], step):
                parameter.requires_grad_(True)
            else:
                _freeze(parameter)

    def end(self) -> None:
        """Let every parameter train that did so when the stage was made."""
        for parameter in self._ours.values():
            parameter.requires_grad_(True)

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Refuse an optimizer that lacks parameters which are to train later.

        Raises:
            UsageError: it does; some are named.
        """
        there = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        lacking = [n for n, p in self._ours.items() if self.parts[n] != "cnn" and id(p) not in there]
        if lacking:
            raise UsageError(
                f"the optimizer lacks {len(lacking)} parameters that are to train, such as {lacking[0]}; give it all "
                f"of model.parameters(), also those that do not require gradients yet"
            )

    def scheduler(self, optimizer: torch.optim.Optimizer, last_step: int = -1) -> torch.optim.lr_scheduler.LambdaLR:
        """The learning-rate schedule for an optimizer, whose own learning rate is the peak.

        Raises:
            UsageError: the optimizer lacks parameters that are to train.
        """
        from torch.optim.lr_scheduler import LambdaLR

        self.check_optimizer(optimizer)
        return LambdaLR(optimizer, self.schedule.learning_rate, last_step)


def parts_of(names: Iterable[str], encoder: str) -> dict[str, Part]:
    """The part of each parameter of a model whose encoder is the submodule of that name.

    Whisper's two convolutions over the spectrogram count as its CNN. A decoder reads what the encoder gives and so
    counts as a head, as do quantizers and the other remains of pre-training.
    """
    prefix = f"{encoder}." if encoder else ""
    return {
        name: _part(theirs.removeprefix(prefix)) if theirs.startswith(prefix) else "head"
        for name, theirs in _as_in_transformers(names).items()
    }


def _as_in_transformers(names: Iterable[str]) -> dict[str, str]:
    """Name -> what transformers would call it, weight norm written the old way."""
    return {name: canonical(theirs) for name, theirs in read_naming(names).names.items()}


def _part(relative: str) -> Part:
    place = place_of(relative)
    if is_head(relative) or place.stack == "decoder":
        return "head"
    return "cnn" if place.part == "cnn" else "encoder"


def find_encoder(names: Iterable[str], title: str = "the model") -> str:
    """The submodule whose parameters, by their names, look most like a speech encoder; empty for the model itself.

    Raises:
        UsageError: nothing looks like transformer layers.
    """
    everything = list(_as_in_transformers(names).values())
    candidates = {prefix for name in everything for prefix in _prefixes(name) if _is_layer(name[len(prefix) :])}
    if not candidates:
        raise UsageError(
            f"no transformer layers were found in {title} (encoder.layers.0.*); name the submodule that is the speech "
            f"encoder: encoder='...'"
        )

    def likeness(prefix: str) -> tuple[int, int]:
        """Between equals the longer wins: what stands beside the encoder is then a head."""
        return sum(name.startswith(prefix) and _is_anatomy(name[len(prefix) :]) for name in everything), len(prefix)

    return max(candidates, key=likeness).removesuffix(".")


def _prefixes(name: str) -> list[str]:
    words = name.split(".")
    return ["".join(f"{word}." for word in words[:depth]) for depth in range(len(words))]


def _is_layer(relative: str) -> bool:
    return place_of(relative).part == "layers"


def _is_anatomy(relative: str) -> bool:
    return place_of(relative).part != "other" and not is_head(relative)


def _named_encoder(model: torch.nn.Module, encoder: str) -> str:
    try:
        inner = model.get_submodule(encoder)
    except AttributeError:
        raise UsageError(f"{type(model).__name__} has no submodule {encoder!r}") from None
    if not any(map(_is_layer, _as_in_transformers(name for name, _ in inner.named_parameters()).values())):
        raise UsageError(
            f"the submodule {encoder!r} of {type(model).__name__} has no transformer layers (encoder.layers.0.*, "
            f"layers.0.*) directly under it"
        )
    return encoder


def _known_without_cnn(model: torch.nn.Module, parts: Mapping[str, Part], encoder: str) -> bool:
    """w2v-BERT by its type, DeCoAR 2.0 by its names: a bare projection, an encoder and nothing else."""
    if any(
        getattr(getattr(module, "config", None), "model_type", None) in _WITHOUT_CNN
        for module in (model, model.get_submodule(encoder))
    ):
        return True
    prefix = f"{encoder}." if encoder else ""
    names = [name.removeprefix(prefix) for name, part in parts.items() if part != "head"]
    beside = {name.rpartition(".")[0] for name in names if not name.startswith("encoder.")}
    return beside == {"post_extract_proj"}


def _freeze(parameter: torch.nn.Parameter) -> None:
    parameter.requires_grad_(False)
    parameter.grad = None


def quiet_encoder(model: torch.nn.Module, encoder: str) -> None:
    """Turn off what drops layers or masks features at random in that submodule, and gradients through its CNN.

    Modules and configs are changed in place. Decoders keep their layer drop.
    """
    root = model.get_submodule(encoder)
    for name, module in root.named_modules():
        if place_of(f"{name}.").stack != "decoder":
            _set(module, "layerdrop", 0.0)
            _set(module, "layer_drop", 0.0)  # torchaudio's name for it
    for config in (getattr(owner, "config", None) for owner in (model, root)):
        _set(config, "layerdrop", 0.0)
        _set(config, "encoder_layerdrop", 0.0)  # Whisper's name for it
        _set(config, "apply_spec_augment", False)
    _set(root, "feature_grad_mult", 0.0)  # fairseq then runs its CNN without a graph
    _set(getattr(root, "feature_extractor", None), "_requires_grad", False)  # transformers does, unless this is True


def _set(owner: Any, attribute: str, value: object) -> None:
    """Change a setting where there is one."""
    if hasattr(owner, attribute):
        setattr(owner, attribute, value)
