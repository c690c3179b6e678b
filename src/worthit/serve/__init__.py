"""An OpenAI-compatible server over the engine: `worthit serve MODEL`."""
