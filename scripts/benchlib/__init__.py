"""Parts of scripts/bench: runs (clocks), dumps and engine (what is run), document and chart (what is written)."""
