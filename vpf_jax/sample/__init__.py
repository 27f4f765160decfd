"""Random numbers (`streams`), Gibbs kernels and chains (`gibbs`), and chains at several temperatures (`tempering`)."""
