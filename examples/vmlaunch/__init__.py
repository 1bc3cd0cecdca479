"""A virtual machine is launched in ten steps; a failure at any of them frees what was taken, last first."""
