//! Runs what the chapters say to type, and compares what comes with what they print.
//!
//! A block of the kind `console` has commands, each after `$ `, and their output. The commands of a chapter run in one
//! shell, in a folder with `hello.ami`, and a home of its own. A block whose fence says `save=NAME` becomes a file
//! there.
//!
//! Numbers, addresses and identifiers differ from run to run. So outputs are compared word by word, and a word with a
//! digit matches any other; `…` matches any number of words.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use kiln_tests::arch::Arch;
use kiln_tests::dist::{Dist, PROGRAMS, Profile, cargo, workspace};

use super::parts::{Part, parts};
use super::summary::Chapter;

/// What is printed between the outputs of two commands.
const MARK: &str = "<next command of the book>";
/// Stands for words that a chapter leaves out.
const LEFT_OUT: &str = "…";

/// A command and what it prints.
#[derive(Debug, PartialEq, Eq)]
struct Step {
    command: String,
    output: String,
}

/// Builds the programs and the image, and runs the chapters whose file names contain `filter`.
pub(super) fn run(chapters: &[Chapter], filter: &str) -> Result<()> {
    let dist = Dist::build_programs(cargo(), Arch::host()?, Profile::Dev, &PROGRAMS)?;
    let image = dist.image("examples/hello.toml")?;
    let mut wrong = Vec::new();
    for chapter in chapters.iter().filter(|chapter| chapter.file.contains(filter)) {
        let parts = parts(&chapter.text);
        let steps: Vec<Step> = parts.iter().flat_map(steps).collect();
        // The preface builds all of this.
        if steps.iter().all(|step| !step.command.starts_with("cargo demo")) {
            eprintln!("xtask: the commands of {}", chapter.file);
            let outputs = carry_out(&parts, &steps, &dist.dir(), &image)?;
            wrong.extend(compare(&chapter.file, &steps, &outputs));
        }
    }
    ensure!(wrong.is_empty(), "not what the book says:\n{}", wrong.join("\n"));
    Ok(())
}

/// The commands of a block.
fn steps(part: &Part) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let Part::Block(words, text) = part else {
        return steps;
    };
    for line in text.lines().filter(|_| words == "console") {
        match (line.strip_prefix("$ "), steps.last_mut()) {
            (Some(command), _) => steps.push(Step {
                command: command.to_owned(),
                output: String::new(),
            }),
            (None, Some(step)) => step.output += &format!("{line}\n"),
            (None, None) => {}
        }
    }
    steps
}

/// Runs the commands and returns what each has printed.
fn carry_out(parts: &[Part], steps: &[Step], programs: &Path, image: &Path) -> Result<Vec<String>> {
    let folder = tempfile::tempdir().context("a folder for a chapter")?;
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("run")).context("a folder for sockets")?;
    // Instances keep a hard link to their image where they can.
    fs::hard_link(image, at("hello.ami"))
        .or_else(|_| fs::copy(image, at("hello.ami")).map(drop))
        .context("the image")?;
    for part in parts {
        if let Part::Block(words, text) = part
            && let Some(name) = words.split(',').find_map(|word| word.strip_prefix("save="))
        {
            fs::write(at(name), text).with_context(|| name.to_owned())?;
        }
    }
    let mut path = OsString::from(programs);
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    let mut shell = Command::new("bash");
    shell
        .args(["-c", &script(steps)])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .env("PATH", path)
        .env("CARGO_HOME", of_home("CARGO_HOME", ".cargo"))
        .env("RUSTUP_HOME", of_home("RUSTUP_HOME", ".rustup"))
        .env("HOME", folder.path())
        .env("XDG_RUNTIME_DIR", at("run"));
    for variable in ["XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME"] {
        shell.env_remove(variable);
    }
    let output = shell.output().context("bash")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.split(MARK).skip(1).map(str::to_owned).collect())
}

/// A folder of the user's, which the shell would look for in its own home.
fn of_home(variable: &str, name: &str) -> PathBuf {
    let home = env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    env::var_os(variable).map_or_else(|| home.join(name), PathBuf::from)
}

/// The shell's script: the commands, each after a mark, and the end of what they have left running.
fn script(steps: &[Step]) -> String {
    let commands = steps.iter().map(|step| {
        // What cargo builds is in the workspace.
        let command = match step.command.starts_with("cargo ") {
            true => format!("(cd '{}' && {})", workspace().display(), step.command),
            false => step.command.clone(),
        };
        format!("printf '\\n{MARK}\\n'\n{command}\n")
    });
    format!(
        "exec 2>&1\n{}printf '\\n{MARK}\\n'\nvmm ps -aq | xargs -r vmm terminate\nkill $(jobs -p) 2> /dev/null\n",
        commands.collect::<String>()
    )
}

/// Where outputs differ, one text each.
fn compare(chapter: &str, steps: &[Step], outputs: &[String]) -> Vec<String> {
    let none = String::new();
    let pairs = steps
        .iter()
        .enumerate()
        .map(|(at, step)| (step, outputs.get(at).unwrap_or(&none)));
    pairs
        .filter(|(step, output)| !matches(&words(&step.output), &words(output)))
        .map(|(step, output)| {
            format!(
                "{chapter}: $ {}\n--- the book:\n{}--- now:\n{}",
                step.command,
                step.output,
                output.trim_start()
            )
        })
        .collect()
}

/// The words of an output, without what differs. The bars of a timeline are as long as the host is slow.
fn words(text: &str) -> Vec<&str> {
    let words = text.split_whitespace().filter(|word| !word.starts_with('█'));
    words
        .map(|word| match word.contains(|c: char| c.is_ascii_digit()) {
            true => "0",
            false => word,
        })
        .collect()
}

fn matches(wanted: &[&str], found: &[&str]) -> bool {
    match wanted.split_first() {
        None => found.is_empty(),
        Some((&LEFT_OUT, rest)) => (0..=found.len()).any(|skipped| matches(rest, &found[skipped..])),
        Some((word, rest)) => found.first() == Some(word) && matches(rest, &found[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &str) -> Part {
        Part::Block("console".to_owned(), text.to_owned())
    }

    #[test]
    fn commands_and_their_outputs_are_told_apart() {
        let found = steps(&block("$ one\n1\n2\n$ two\n$ three\n3\n"));
        let expected = [("one", "1\n2\n"), ("two", ""), ("three", "3\n")].map(|(command, output)| Step {
            command: command.to_owned(),
            output: output.to_owned(),
        });
        assert_eq!(found, expected);
        assert_eq!(steps(&Part::Block("rust".to_owned(), "$ x\n".to_owned())), []);
    }

    #[test]
    fn numbers_may_differ_and_words_may_not() {
        let same = |wanted: &str, found: &str| matches(&words(wanted), &words(found));
        assert!(same("T4 first_run 3.011 0.141 ██", "T4  first_run  7.5 1.1 █\n"));
        assert!(same("one\n…\ntotal 68", "one two 3\nfour\ntotal 70"));
        assert!(same("i-642c153ccd41cb228", "i-81bf8e91fac0cac21"));
        assert!(!same("Seccomp: 2", "NoNewPrivs: 1"));
        assert!(!same("one", "one two"), "more than the book says");
        assert!(!same("one two", "one"), "less");
    }

    #[test]
    fn each_command_of_a_chapter_sees_what_those_before_it_did() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let parts = [
            block("$ x=text; cd run\n$ echo $x; pwd; cat ../file\ntext\n/tmp/0/run\nsaved\n"),
            Part::Block("text,save=file".to_owned(), "saved\n".to_owned()),
        ];
        let steps: Vec<_> = parts.iter().flat_map(steps).collect();
        let outputs = carry_out(&parts, &steps, Path::new("/nowhere"), image.path()).unwrap();
        assert_eq!(outputs.len(), steps.len() + 1, "and what comes after the last");
        assert!(outputs[1].trim_start().starts_with("text\n") && outputs[1].contains("/run\nsaved\n"));
        assert_eq!(compare("chapter", &steps[..1], &outputs), [""; 0]);
    }
}
