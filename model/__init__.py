"""PathAR: the Dual-VQ tokenizer, the interleaved autoregressive prior, and the engine that decodes."""
