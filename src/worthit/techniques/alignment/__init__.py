"""Records of learning from preferences; the baseline is a reward model with PPO or GRPO."""
