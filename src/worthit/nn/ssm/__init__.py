"""State-space models and RWKV: a recurrent state in place of a cache."""
