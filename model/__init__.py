"""PathAR: the Dual-VQ tokenizer, the interleaved prior, and the engine that decodes."""
