"""Training of the built-in models: `python -m ddcm_fast.models.train photo --help`. The runtime imports none of it."""
