"""Edit pictures by words with a diffusers pipeline, on whatever device is here."""
