"""A small world to learn and to be tested in: coloured shapes that move, captions that say so, and a reader of frames
that tells what is in a video."""
