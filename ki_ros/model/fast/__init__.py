"""FAST action tokens: an action chunk as a short sequence of the backbone's vocabulary (arXiv 2501.09747)."""

from ki_ros.model.fast.errors import FASTDecodeError, FASTEncodeError, FASTTokenizerError
from ki_ros.model.fast.grammar import FASTGrammar
from ki_ros.model.fast.inputs import TokenizeFASTInputs
from ki_ros.model.fast.tokenizer import FASTBatch, FASTTokenizer
from ki_ros.model.fast.vocabulary import LOC_AND_SEG, OPENPI_SKIP, FASTVocabulary

__all__ = [
    "FASTBatch",
    "FASTDecodeError",
    "FASTEncodeError",
    "FASTGrammar",
    "FASTTokenizer",
    "FASTTokenizerError",
    "FASTVocabulary",
    "LOC_AND_SEG",
    "OPENPI_SKIP",
    "TokenizeFASTInputs",
]
