"""Flow matching: interpolation, velocity, and the one sampler that everything uses."""
