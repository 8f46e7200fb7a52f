"""DiT and Latte, the transformers with adaLN-Zero blocks of Open-Sora v1.0."""
