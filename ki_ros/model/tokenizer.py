"""Text to token ids with a sentencepiece model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import sentencepiece

PALIGEMMA_SOURCES = (
    "PaliGemma's is gs://big_vision/paligemma_tokenizer.model (a public bucket, "
    "https://storage.googleapis.com/big_vision/paligemma_tokenizer.model), or tokenizer.model of the repository "
    "google/paligemma-3b-pt-224 on Hugging Face"
)


class TokenizerError(ValueError):
    """A tokenizer that cannot be loaded, or text that it cannot fit; the message gives the lengths or the path."""


class PromptTokenizer:
    """Encodes prompts with a leading BOS, padded on the right with id 0.

    Args:
        path: a sentencepiece model file.
        max_len: tokens of an encoded prompt, padding included.

    Raises:
        TokenizerError: the file is missing or is no sentencepiece model with a BOS token.
    """

    def __init__(self, path: str | Path, max_len: int) -> None:
        path = Path(path)
        if not path.is_file():
            raise TokenizerError(f"tokenizer {path} does not exist; give the path of a sentencepiece model. "
                                 f"{PALIGEMMA_SOURCES}")  # fmt: skip
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
            vocab_size = self._processor.vocab_size()
        except (OSError, RuntimeError) as error:
            raise TokenizerError(
                f"tokenizer {path} is not a sentencepiece model ({error}). {PALIGEMMA_SOURCES}"
            ) from error
        if self._processor.bos_id() < 0:
            raise TokenizerError(f"tokenizer {path} has no BOS token; the prompt starts with one. {PALIGEMMA_SOURCES}")
        self.vocab_size: int = vocab_size
        self.max_len = max_len

    def encode(self, prompt: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids (max_len,) int64 and their mask (max_len,) bool, true at real tokens.

        Raises:
            TokenizerError: more tokens than max_len. A prompt that is cut loses its state and its end, so it is
                refused.
        """
        tokens = self._processor.encode(prompt, add_bos=True)
        if len(tokens) > self.max_len:
            raise TokenizerError(
                f"the prompt has {len(tokens)} tokens ({len(prompt)} characters), more than the {self.max_len} that "
                "the policy takes; give a shorter instruction"
            )
        ids = np.zeros(self.max_len, dtype=np.int64)
        ids[: len(tokens)] = tokens
        return ids, np.arange(self.max_len) < len(tokens)

    def decode(self, ids: np.ndarray) -> str:
        """The text of token ids, without BOS and padding."""
        special = {self._processor.bos_id(), self._processor.pad_id()}
        return self._processor.decode([int(token) for token in ids if int(token) not in special])
