"""DiffusionNFT alignment: records, rollout, advantages, loss, trainer."""
