"""Networks that evaluations compute features of frames and videos with."""
