//! Python with libraries from PyPI, for tests with clients that nobody here wrote.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

/// Why there are no such tests, if there are none: they take a network and some time.
pub fn missing() -> Option<String> {
    if std::env::var_os("KILN_LONG_TESTS").is_none() {
        return Some("KILN_LONG_TESTS is not set".to_owned());
    }
    let output = Command::new("python3")
        .args(["-c", "import ensurepip, venv"])
        .output();
    let usable = output.is_ok_and(|output| output.status.success());
    (!usable).then(|| "python3 has no venv and pip (Debian: python3-venv)".to_owned())
}

/// What a command that has to succeed writes to its standard output.
///
/// # Errors
/// With all that it has written when it fails.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// The programs of Python with the libraries that the file `list` names, made once in `folder` for each content
/// of it.
///
/// # Errors
/// When they cannot be made.
pub fn programs(folder: &Path, list: &Path) -> Result<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (venv, installed) = (folder.join("venv"), folder.join("installed"));
    let wanted = fs::read(list)?;
    if fs::read(&installed).ok().as_ref() != Some(&wanted) {
        fs::create_dir_all(folder)?;
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        let pip = ["-m", "pip", "install", "--quiet", "--requirement"];
        run(Command::new(venv.join("bin/python")).args(pip).arg(list))?;
        fs::write(&installed, &wanted)?;
    }
    Ok(venv.join("bin"))
}
