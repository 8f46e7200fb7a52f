"""Text encoders: mT5 and T5 v1.1, the encoder halves, and their tokenizers."""
