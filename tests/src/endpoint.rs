//! `ec2 serve` on a port of its own, for the tests that are its clients.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

/// A server; it is killed when this is dropped.
#[derive(Debug)]
pub struct Endpoint {
    server: Child,
    /// Where it listens: host and port.
    pub address: String,
    /// The lines for a shell that it has printed.
    pub lines: String,
}

impl Endpoint {
    /// Starts the program of `ec2`, and waits until it has printed how it is reached.
    ///
    /// # Errors
    /// When it does not start, or ends before.
    pub fn serve(mut ec2: Command) -> Result<Endpoint> {
        let mut server = ec2
            .args(["serve", "--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .spawn()
            .context("ec2 could not be started")?;
        let mut lines = String::new();
        let mut output = BufReader::new(server.stdout.take().context("its output")?);
        while !lines.contains("aws()") {
            ensure!(output.read_line(&mut lines)? > 0, "it ended: {lines}");
        }
        let (_, rest) = lines.split_once("http://").context("an address")?;
        let address = rest.split_whitespace().next().unwrap_or_default().to_owned();
        Ok(Endpoint {
            server,
            address,
            lines,
        })
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
