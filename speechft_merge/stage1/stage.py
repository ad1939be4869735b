"""Stage 1 of Speech-FT, stable fine-tuning: sets what trains at which step, for any torch model.

For the first tenth of the steps the head alone trains; then everything but the convolutional feature extractor does.
The learning rate warms up meanwhile, is held, and decays to zero (Lin et al., IEEE TASLP 2026). In your own training
loop:

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

A step is an optimizer step: with gradient accumulation, call `begin` and `scheduler.step` once for all its batches.
Where encoder and head are two modules (S3PRL), give both: `torch.nn.ModuleDict({"upstream": ..., "downstream": ...})`.
With DistributedDataParallel make the stage first, then wrap the model with `find_unused_parameters=True`, because
frozen parameters have no gradient to wait for.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal, get_args

from speechft_merge.errors import UsageError, amount
from speechft_merge.layouts.heads import is_of_pretraining
from speechft_merge.layouts.naming import Naming, TensorName, read_naming
from speechft_merge.layouts.structure import is_block, is_decoder, locate
from speechft_merge.layouts.wrappers import unwrap
from speechft_merge.stage1.schedule import Part, Schedule

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch


Cnn = Literal["freeze", "train", "none"]
"""What becomes of the convolutional feature extractor: it never trains, it trains when the encoder does, or there is
none."""

_WITHOUT_CNN = frozenset(["decoar2", "wav2vec2-bert"])
"""Model types of transformers that begin with filter banks."""
_FIXED = "embed_positions.weight"
"""Ending of the name of Whisper's sinusoids, which its class freezes itself."""

_log = logging.getLogger(__name__)


class StableFineTuning:
    """Stage 1 on one model.

    Construction freezes the CNN and turns off the encoder's layer drop and SpecAugment. What was frozen beforehand
    stays frozen: it may be the CNN, Whisper's sinusoidal positions, parts of the head, and what peft froze under its
    adapters. Of a model with LoRA these train when the encoder does, and the head must be in its `modules_to_save`.

    With fewer than ten steps there is no head-only phase, and a warning in the log says so.

    Args:
        model: any module that contains a speech encoder, with the names of transformers, fairseq, S3PRL or torchaudio.
            Heads of pre-training within the encoder's own module (fairseq's `final_proj`, `quantizer`) count to the
            encoder, so an upstream alone has no head, whatever its family.
        schedule: when each part trains.
        encoder: the name of the submodule that is the encoder, such as `upstream.model`; None to detect it.
        cnn: `freeze` the encoder's convolutional feature extractor, `train` it when the encoder trains (an ablation; it
            then counts to the encoder), or `none` where the encoder begins with filter banks and has no such module.
            w2v-BERT and DeCoAR 2.0 are known to have none.

    Raises:
        UsageError: no encoder is found, the encoder lacks a CNN that it should have or has one that it should not,
            there is no head that trains, or some of the encoder is frozen.
    """

    def __init__(
        self, model: torch.nn.Module, schedule: Schedule, *, encoder: str | None = None, cnn: Cnn = "freeze"
    ) -> None:
        if cnn not in get_args(Cnn):
            raise UsageError(f"cnn is {cnn!r}", hint=f"use one of {', '.join(get_args(Cnn))}")
        self.model = model
        self.schedule = schedule
        named = dict(model.named_parameters())
        title = type(model).__name__
        naming = read_naming({name: tuple(parameter.shape) for name, parameter in named.items()})
        self.encoder = find_encoder(naming, title) if encoder is None else encoder
        if encoder is not None:
            _require_encoder(model, encoder, naming)
        self.parts = parts_of(naming, self.encoder)
        """Name of each parameter -> the part that it belongs to."""
        self._require_cnn(title, cnn)
        if cnn == "train":
            self.parts = {name: "encoder" if part == "cnn" else part for name, part in self.parts.items()}
        self._ours = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        self._require_training_parts(title)
        if schedule.head_only and not schedule.head_only_steps:
            _log.warning("%d steps are too few for a head-only phase: the encoder trains at once", schedule.total_steps)
        quiet_encoder(model, self.encoder, cnn_trains=cnn == "train")
        for name, parameter in self._ours.items():
            if self.parts[name] == "cnn":
                _freeze(parameter)

    def _require_cnn(self, title: str, cnn: Cnn) -> None:
        found = "cnn" in self.parts.values()
        if cnn == "none" and found:
            raise UsageError(
                f"cnn='none', but {self.encoder!r} of {title} has convolutions before its layers",
                hint="pass cnn='freeze' or cnn='train'",
            )
        if cnn != "none" and not found and not _known_without_cnn(self.model, self.parts, self.encoder):
            raise UsageError(
                f"no convolutional feature extractor (feature_extractor.*) was found in {self.encoder!r} of {title}",
                hint="pass cnn='none' if it begins with filter banks",
            )

    def _require_training_parts(self, title: str) -> None:
        encoder = [name for name, part in self.parts.items() if part == "encoder" and not name.endswith(_FIXED)]
        frozen = [name for name in encoder if name not in self._ours]
        if frozen and (len(frozen) == len(encoder) or not _has_adapters(self.model)):
            raise UsageError(
                f"{len(frozen)} of {len(encoder)} tensors of the encoder of {title} are frozen beforehand "
                f"(requires_grad is False), such as {frozen[0]}",
                hint="leave the freezing to StableFineTuning: these would stay frozen to the end; "
                "after a training that broke off, load the model anew",
            )
        heads = [name for name, part in self.parts.items() if part == "head"]
        if self.schedule.head_only_steps and not any(name in self._ours for name in heads):
            steps = f"nothing would train in the first {self.schedule.head_only_steps} steps"
            if heads:
                raise UsageError(
                    f"the head of {title} is frozen ({heads[0]}), so that {steps}",
                    hint="unfreeze it (peft: modules_to_save), or use head_only=0",
                )
            raise UsageError(
                f"{title} has no head beside its encoder, so that {steps}",
                hint="use a class with a head, put encoder and head into one torch.nn.ModuleDict, or use head_only=0",
            )

    def begin(self, step: int) -> None:
        """Freeze and unfreeze parameters for a step, counted from 0.

        Frozen parameters have no gradient afterwards, not even zeros: weight decay and momentum would still move them.

        Raises:
            UsageError: the step is outside the schedule.
        """
        if not 0 <= step < self.schedule.total_steps:
            raise UsageError(f"step {step} is outside the {self.schedule.total_steps} steps of the schedule")
        for name, parameter in self._ours.items():
            if self.schedule.trains(self.parts[name], step):
                parameter.requires_grad_(True)
            else:
                _freeze(parameter)

    def end(self) -> None:
        """Unfreeze every parameter that required gradients when the stage was made."""
        for parameter in self._ours.values():
            parameter.requires_grad_(True)

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Check that the optimizer has every parameter that trains at some step.

        Raises:
            UsageError: it lacks some; one of them is named.
        """
        there = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        lacking = [n for n, p in self._ours.items() if self.parts[n] != "cnn" and id(p) not in there]
        if lacking:
            raise UsageError(
                f"the optimizer lacks {amount(len(lacking), 'parameter')} that must train, such as {lacking[0]}",
                hint="give it all of model.parameters(), also those that do not require gradients yet",
            )

    def scheduler(self, optimizer: torch.optim.Optimizer, last_step: int = -1) -> torch.optim.lr_scheduler.LambdaLR:
        """Return the learning-rate scheduler for an optimizer, whose own learning rate is the peak.

        Raises:
            UsageError: see `check_optimizer`.
        """
        from torch.optim.lr_scheduler import LambdaLR

        self.check_optimizer(optimizer)
        return LambdaLR(optimizer, self.schedule.learning_rate, last_step)


def parts_of(naming: Naming, encoder: str) -> dict[str, Part]:
    """Return the part of each parameter of a model whose encoder is the submodule of that name.

    Whisper's two convolutions over the spectrogram count as its CNN. Decoders read the encoder's output and count as
    heads, as does whatever stands beside the encoder's module. Heads of pre-training within that module, which
    fairseq's models have, count to the encoder: no task's loss reaches them.
    """
    return {own: _part(name) for own, name in naming.under(_prefix(naming, encoder)).items()}


def _prefix(naming: Naming, encoder: str) -> str:
    """Return the prefix of the names in a submodule."""
    return unwrap(f"{encoder}.", naming.wrappers) if encoder else ""


def _part(name: TensorName) -> Part:
    if not name.inside or is_decoder(name.location.stack):
        return "head"
    if name.location.stays and not is_of_pretraining(name.canonical):
        return "head"
    return "cnn" if name.location.part == "cnn" else "encoder"


def find_encoder(naming: Naming, title: str = "the model") -> str:
    """Return the submodule whose parameter names look most like a speech encoder; empty for the model itself.

    On a tie prefer the longer prefix, so that modules beside the encoder count as heads.

    Raises:
        UsageError: nothing looks like transformer blocks.
    """
    likeness = _likeness(naming)
    if not likeness:
        raise UsageError(
            f"no transformer layers were found in {title} (encoder.layers.0.*)",
            hint="pass the name of the submodule that is the speech encoder: encoder='...'",
        )
    return naming.module(max(likeness, key=lambda prefix: (likeness[prefix], len(prefix))))


def _likeness(naming: Naming) -> dict[str, int]:
    """Return each prefix with blocks directly under it -> parameters there whose names are those of an encoder.

    Blocks that lie deeper have their place in another module.
    """
    under: dict[str, dict[str, tuple[int, ...]]] = {}
    for own, name in naming.full.items():
        words = name.split(".")
        for prefix in ("".join(f"{word}." for word in words[:depth]) for depth in range(len(words))):
            under.setdefault(prefix, {})[name[len(prefix) :]] = naming.shapes[own]
    return {
        prefix: sum(
            is_block(name) or location.part not in ("layers", "other", "head")
            for name, location in locate(shapes).items()
        )
        for prefix, shapes in under.items()
        if any(map(is_block, shapes))
    }


def _require_encoder(model: torch.nn.Module, encoder: str, naming: Naming) -> None:
    """Raise UsageError unless there is such a submodule, with blocks directly under it."""
    title, prefix = type(model).__name__, _prefix(naming, encoder)
    try:
        model.get_submodule(encoder)
    except AttributeError:
        raise UsageError(f"{title} has no submodule {encoder!r}") from None
    plain = [inner for inner in _likeness(naming) if inner.startswith(prefix)]
    blocks = any(name.inside and name.location.part == "layers" for name in naming.under(prefix).values())
    if prefix not in plain if plain else not blocks:
        raise UsageError(
            f"the submodule {encoder!r} of {title} has no transformer layers (encoder.layers.0.*, layers.0.*) "
            f"directly under it"
        )


def _known_without_cnn(model: torch.nn.Module, parts: Mapping[str, Part], encoder: str) -> bool:
    """Return whether it is w2v-BERT or DeCoAR 2.0 by its type, or the latter by its names: a projection and blocks."""
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


def _has_adapters(model: torch.nn.Module) -> bool:
    """Return whether peft put adapters into a module, and froze the weights around them."""
    return any(getattr(module, "peft_config", None) for module in model.modules())


def quiet_encoder(model: torch.nn.Module, encoder: str, *, cnn_trains: bool = False) -> None:
    """Turn off layer drop and SpecAugment in that submodule, and gradients through its CNN if that is frozen, in place.

    Decoders keep their layer drop.
    """
    root = model.get_submodule(encoder)
    for name, module in root.named_modules():
        if not is_decoder(name.partition(".")[0]):
            _set(module, "layerdrop", 0.0)
            _set(module, "layer_drop", 0.0)  # torchaudio's name for it
    for config in (getattr(owner, "config", None) for owner in (model, root)):
        _set(config, "layerdrop", 0.0)
        _set(config, "encoder_layerdrop", 0.0)  # Whisper's name for it
        _set(config, "apply_spec_augment", False)
    if not cnn_trains:
        _set(root, "feature_grad_mult", 0.0)  # fairseq then runs its CNN without a graph
        _set(getattr(root, "feature_extractor", None), "_requires_grad", False)  # transformers does, unless it is True
    elif getattr(root, "feature_grad_mult", None) == 0:
        _set(root, "feature_grad_mult", 1.0)  # S3PRL sets it to 0, also where its CNN is meant to train


def _set(owner: Any, attribute: str, value: object) -> None:
    """Set an attribute if the object has it."""
    if hasattr(owner, attribute):
        setattr(owner, attribute, value)
