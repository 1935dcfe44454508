"""What a device can do, measured: bandwidth, products, attention, convolution, a model; and what is best for it."""
