"""From run folders to tables; imports neither torch nor transformers."""
