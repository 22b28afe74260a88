"""From stores to numbers and figures. Never imports torch, a model or a tokenizer."""
