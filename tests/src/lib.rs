//! Support for end-to-end tests, which are in `tests/e2e` and drive the programs through their command lines.
//!
//! [`dist`] builds the programs and images that are tested, [`lab`] provides a host with genuine KVM on any
//! machine that has QEMU, and [`test_host`] is where a test runs: on this machine, or in a lab.
//! [`repository`] is what guests install packages from, [`endpoint`] an EC2 API that is being served, and
//! [`python`] has libraries from PyPI.

pub mod arch;
pub mod dist;
pub mod endpoint;
pub mod lab;
pub mod pty;
pub mod python;
pub mod repository;
pub mod rootless;
pub mod test_host;
