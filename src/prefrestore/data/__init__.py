"""Sources, procedural portraits, degradation, paired data and preferences."""
