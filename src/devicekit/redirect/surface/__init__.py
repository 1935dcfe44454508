"""The parts of torch that are replaced whichever way tensors are redirected: one file for each idea."""
