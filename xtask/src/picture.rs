//! `cargo xtask picture`: boots the hello image and draws the steps of the boot for the README.
//!
//! Each bar is what passed between two events of `vmm run --timing`; `docs/timeline.md` says what the events
//! are.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use kiln_tests::dist::{Dist, Profile, workspace};
use serde_json::Value;

/// The picture, relative to the workspace.
const PICTURE: &str = "docs/boot.svg";
/// Of the picture, and of one row of it.
const WIDTH: f64 = 860.0;
const ROW: f64 = 26.0;
/// Where bars begin and end.
const LEFT: f64 = 300.0;
const RIGHT: f64 = 770.0;

/// Whose code runs between the event before and this one.
#[derive(Clone, Copy)]
enum Who {
    Vmm,
    Kernel,
    GuestInit,
}

impl Who {
    fn colour(self) -> &'static str {
        match self {
            Who::Vmm => "#c2570c",
            Who::Kernel => "#2f6f9f",
            Who::GuestInit => "#4d7c3a",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Who::Vmm => "vmm",
            Who::Kernel => "the guest's kernel",
            Who::GuestInit => "guest-init",
        }
    }
}

/// The events in the order in which they happen, and what leads to each.
const STEPS: [(&str, &str, Who); 9] = [
    ("T1", "program loaded", Who::Vmm),
    ("T2", "image verified, machine created", Who::Vmm),
    ("T3", "kernel and tables in guest memory", Who::Vmm),
    ("T4", "first instruction of the guest", Who::Vmm),
    ("T6", "kernel starts", Who::Kernel),
    ("T7", "kernel initialized, initramfs starts", Who::Kernel),
    ("T8", "drivers loaded, root mounted", Who::GuestInit),
    ("T9", "identity and network set up, PID 1", Who::GuestInit),
    ("T10", "agent answers", Who::GuestInit),
];

/// Launches once so that all is in the page cache, and draws the second launch.
pub fn picture() -> Result<u8> {
    let dist = Dist::build(Profile::Release)?;
    let image = dist.image("examples/hello.toml")?;
    let timing = tempfile::NamedTempFile::new().context("a temporary file")?;
    for _ in 0..2 {
        let status = Command::new(dist.program("vmm"))
            .arg("run")
            .arg(&image)
            .args(["--rm", "--timing"])
            .arg(timing.path())
            .args(["--", "true"])
            .status()
            .context("vmm could not be started")?;
        ensure!(status.success(), "the hello image did not run: {status}");
    }
    let text = fs::read_to_string(timing.path()).context("the timing")?;
    let svg = draw(&times(&serde_json::from_str(&text)?)?);
    let path = workspace().join(PICTURE);
    fs::write(&path, svg).with_context(|| format!("{} could not be written", path.display()))?;
    eprintln!("xtask: {}", path.display());
    Ok(0)
}

/// When each of [`STEPS`] was reached, in milliseconds from the start of the process.
fn times(timing: &Value) -> Result<Vec<f64>> {
    let events = timing["events"].as_array().context("no events in the timing")?;
    let at = |id: &str| {
        let event = events.iter().find(|event| event["id"] == id);
        let nanoseconds = event.and_then(|event| event["at"].as_f64());
        nanoseconds
            .map(|at| at / 1e6)
            .with_context(|| format!("no {id} in the timing"))
    };
    STEPS.iter().map(|(id, ..)| at(id)).collect()
}

fn draw(times: &[f64]) -> String {
    let whole = times.last().copied().unwrap_or(1.0).max(f64::MIN_POSITIVE);
    let x = |time: f64| LEFT + (RIGHT - LEFT) * (time / whole).clamp(0.0, 1.0);
    let height = 76.0 + ROW * STEPS.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         aria-label=\"The steps of a boot\" font-family=\"system-ui, sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" rx=\"8\" fill=\"#fbfaf7\"/>\n"
    );
    let mut key = 24.0;
    for who in [Who::Vmm, Who::Kernel, Who::GuestInit] {
        let _ = writeln!(
            svg,
            "<rect x=\"{key}\" y=\"18\" width=\"12\" height=\"12\" rx=\"2\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"29\" fill=\"#333\">{}</text>",
            who.colour(),
            key + 18.0,
            who.name()
        );
        key += 50.0 + 8.0 * who.name().len() as f64;
    }
    let mut before = 0.0;
    for (row, ((id, what, who), &time)) in STEPS.iter().zip(times).enumerate() {
        let y = 48.0 + ROW * row as f64;
        let (from, to) = (x(before), x(time));
        let _ = writeln!(
            svg,
            "<text x=\"24\" y=\"{0}\" fill=\"#888\">{id}</text><text x=\"60\" y=\"{0}\" fill=\"#222\">{what}</text>\
             <rect x=\"{from:.1}\" y=\"{1}\" width=\"{2:.1}\" height=\"14\" rx=\"2\" fill=\"{3}\"/>\
             <text x=\"{4:.1}\" y=\"{0}\" fill=\"#555\">{5}</text>",
            y + 13.0,
            y + 2.0,
            (to - from).max(1.5),
            who.colour(),
            to.max(from + 1.5) + 6.0,
            duration(time)
        );
        before = time;
    }
    svg + "</svg>\n"
}

fn duration(milliseconds: f64) -> String {
    if milliseconds < 100.0 {
        format!("{milliseconds:.1} ms")
    } else if milliseconds < 1000.0 {
        format!("{milliseconds:.0} ms")
    } else {
        format!("{:.2} s", milliseconds / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_has_its_bar_and_what_is_missing_is_named() {
        let mut events: Vec<_> = STEPS
            .iter()
            .zip(1u32..)
            .map(|((id, ..), n)| serde_json::json!({ "id": id, "at": f64::from(n) * 5e6 }))
            .collect();
        let svg = draw(&times(&serde_json::json!({ "events": events })).unwrap());
        assert_eq!(svg.matches("height=\"14\"").count(), STEPS.len());
        assert!(svg.contains(">45.0 ms<") && svg.ends_with("</svg>\n"), "{svg}");
        events.pop();
        let error = times(&serde_json::json!({ "events": events })).unwrap_err();
        assert!(error.to_string().contains("T10"), "{error}");
    }
}
