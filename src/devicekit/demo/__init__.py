"""The main job on real input: a pretrained sentence-embedding model, run through the facade alone."""
