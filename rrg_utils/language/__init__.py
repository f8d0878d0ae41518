"""Language models, prompts of text and embeddings, loss and decoding."""

from rrg_utils.language.models import LanguageModel, LoraOptions, load_llm
from rrg_utils.language.prompt import Prompt, TokenLoss, generate, prompt_loss
from rrg_utils.language.tiny import normalise

__all__ = ["LanguageModel", "LoraOptions", "Prompt", "TokenLoss", "generate", "load_llm", "normalise", "prompt_loss"]
