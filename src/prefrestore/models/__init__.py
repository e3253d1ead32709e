"""Networks: codec, image tokenizer, integrator, connectors, generator, and the pipeline that joins them."""
