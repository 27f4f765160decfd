"""Side-by-side measurements of vpf_jax and of what people would use instead; README.md holds their reading."""
