//! How the whole-machine tests find servin and run it.
