//! The vCPU thread and its run loop.
