"""Text encoders: the encoders of mT5 and T5 v1.1, the text encoder of CLIP, and their tokenizers."""
