"""Has a model write what it hears, greedily, so that the decoders of all models are run on the same tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from speechft_merge.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

TOKENS = 160
"""Most tokens of a clip: fast speech of half a minute."""

_POSITIONS = ("max_target_positions", "max_position_embeddings")
"""Settings that bound the tokens of a decoder."""


def write(name: str, model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Return the tokens that a model writes of one clip, the best at each step, from the one that a text begins with.

    No settings of how to generate are applied: no language or task is forced, nothing is suppressed. The token that
    ends a text is left out.

    Args:
        name: of the model, for messages.
        model: of transformers, with a decoder and its projection.
        inputs: of one clip.

    Returns:
        int64, (1, tokens): at least the first one.

    Raises:
        CheckpointError: the model does not say which token that is.
    """
    from transformers.generation import GenerationConfig, GenerationMixin

    config = model.config
    start, end = config.decoder_start_token_id, config.eos_token_id
    if start is None:
        raise CheckpointError(f"{name}: its config does not say with which token a text begins")
    most = min([TOKENS, *(size // 2 for key in _POSITIONS if (size := getattr(config, key, None)))])
    greedy = GenerationConfig(
        decoder_start_token_id=start, eos_token_id=end, pad_token_id=start, max_new_tokens=most, do_sample=False,
        num_beams=1,
    )  # fmt: skip
    model.generation_config, before = greedy, model.generation_config
    try:  # Whisper's own method cuts audio into windows and takes prompts off
        tokens: Tensor = GenerationMixin.generate(model, **inputs, generation_config=greedy)
    finally:
        model.generation_config = before
    ends = {*end} if isinstance(end, list) else {end}
    length = next((at for at, token in enumerate(tokens[0].tolist()) if at and token in ends), tokens.shape[1])
    return tokens[:, :length]
