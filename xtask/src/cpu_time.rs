//! How long processes have used the processor, as Linux accounts it: in ticks of 10 ms.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// User and system time of a process and its threads so far.
pub fn of_process(pid: u32) -> Result<Duration> {
    fields(&pid.to_string(), 14)
}

/// User and system time of all our children that have ended and been waited for, and of theirs.
pub fn of_children() -> Result<Duration> {
    fields("self", 16)
}

/// The sum of two fields of `/proc/PID/stat`, counted from 1 as in proc(5).
fn fields(process: &str, first: usize) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("{path} could not be read"))?;
    // The name, field 2 in parentheses, may hold anything; field 3 comes after it.
    let ticks = stat
        .rsplit(')')
        .next()
        .map(|rest| rest.split_whitespace().skip(first - 3).take(2))
        .and_then(|fields| fields.map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>())
        .with_context(|| format!("{path} has no times"))?;
    let hertz = sysconf(SysconfVar::CLK_TCK)?.context("the clock has no frequency")?;
    Ok(Duration::from_secs_f64(ticks as f64 / hertz as f64))
}
