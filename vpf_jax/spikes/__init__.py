"""The machine in continuous time: spikes (`spiking`), learning at them (`event_learning`), pairs of them (`stdp`)."""
