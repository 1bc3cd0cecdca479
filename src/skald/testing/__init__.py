"""The test kit: the conformance suites that adapters pass, and the model that they are compared with."""
