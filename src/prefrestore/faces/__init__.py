"""Face geometry and identity: detection, landmarks, alignment."""
