//! Confinement, tested from inside: each kind of thread makes forbidden calls, in a process of its
//! own, because confinement cannot be undone. A forbidden system call ends that process by SIGSYS; access to
//! a forbidden file fails with EACCES.
//!
//! The test starts this program again with `KILN_TRY` naming the thread and the attempt.
#![allow(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use machine::sandbox::{self, Kind, Mode, Plan, Right};

#[path = "sandbox/attempts.rs"]
mod attempts;

use attempts::{ATTEMPTS, DISK, start_replacing};

const TRY: &str = "KILN_TRY";
/// The directory that the process may use, and one beside it that it may not.
const HOME: &str = "KILN_TRY_HOME";
/// The exit status of a child whose attempt succeeded; one of an attempt that failed is its error number.
const DONE: i32 = 42;

/// What the parent expects of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It succeeds.
    Done,
    /// It fails with this error.
    Fails(i32),
    /// The process dies by SIGSYS, and says that this call was it.
    Dies(&'static str),
}

/// In the child: confines the process and makes the attempt in a thread of the kind.
fn child(what: &str, home: &Path) -> ! {
    let (kind, attempt) = what.split_once(' ').expect("a kind and an attempt");
    let kind = Kind::ALL.into_iter().find(|k| k.name() == kind).expect("a kind");
    let attempt = ATTEMPTS
        .iter()
        .find(|(name, _)| *name == attempt)
        .expect("an attempt")
        .1;
    let disk = OpenOptions::new()
        .read(true)
        .write(true)
        .open(home.join("own/file"))
        .unwrap();
    assert!(disk.as_raw_fd() > 2);
    DISK.set(disk).unwrap();
    start_replacing(home);
    // A test runs in a thread of its own. The one that waits for it is not confined, and does nothing.
    let plan = Plan {
        files: vec![
            (home.join("own"), Right::Keep),
            (home.join("read-only"), Right::Read),
            (home.join("not-there"), Right::Read),
        ],
        replaced: Some(home.join("etc/names")),
        tcp: kind == Kind::Network,
        network: kind == Kind::Network || !may_leave_network(),
        capabilities: Vec::new(),
    };
    sandbox::confine(Mode::Required, &plan, || kind == Kind::Direct).unwrap();
    let home = home.to_owned();
    let done = sandbox::spawn("tried", kind, move || attempt(&home))
        .unwrap()
        .join()
        .unwrap();
    std::process::exit(match done {
        Ok(()) => DONE,
        Err(error) => error.raw_os_error().unwrap_or(255),
    })
}

/// Without privilege a process may leave the network only while it has one thread, which a test is not: what
/// users have is shown by the end-to-end test `a_user_launches_confined_with_and_without_a_network`.
fn may_leave_network() -> bool {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

fn prepare() -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("own")).unwrap();
    fs::create_dir(home.path().join("etc")).unwrap();
    for file in ["own/file", "foreign", "read-only", "etc/names", "etc/beside"] {
        fs::write(home.path().join(file), "content").unwrap();
    }
    home
}

fn run_attempt(home: &Path, kind: Kind, attempt: &str) -> Output {
    let _socket = (attempt == "unix_socket").then(|| {
        let _ = fs::remove_file(home.join("own/socket"));
        UnixListener::bind(home.join("own/socket")).unwrap()
    });
    command(home, kind, attempt).output().unwrap()
}

fn command(home: &Path, kind: Kind, attempt: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "makes_the_attempt_that_it_is_given", "--nocapture"])
        .env(TRY, format!("{} {attempt}", kind.name()))
        .env(HOME, home)
        .stdin(Stdio::null());
    command
}

/// Not a test by itself: the child of the others.
#[test]
fn makes_the_attempt_that_it_is_given() {
    if let (Ok(what), Some(home)) = (std::env::var(TRY), std::env::var_os(HOME)) {
        child(&what, &PathBuf::from(home));
    }
}

/// Makes each attempt, and reports all that is not as expected.
fn expect(kind: Kind, table: &[(&str, End)]) {
    let mut wrong = Vec::new();
    for &(attempt, end) in table {
        let home = prepare();
        let output = run_attempt(home.path(), kind, attempt);
        let report = String::from_utf8_lossy(&output.stderr).into_owned();
        let as_expected = match end {
            End::Done => output.status.code() == Some(DONE),
            End::Fails(error) => output.status.code() == Some(error),
            End::Dies(call) => {
                let line = format!(
                    "vmm: a {} thread made the forbidden system call {call}:",
                    kind.name()
                );
                output.status.signal() == Some(libc::SIGSYS) && report.contains(&line)
            }
        };
        if !as_expected {
            wrong.push(format!(
                "{attempt} should be {end:?}: {:?} {report}",
                output.status
            ));
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", kind.name(), wrong.join("\n"));
}

/// Whether this host confines at all; where it does not, the tests say so and CI fails.
fn host_confines() -> bool {
    match sandbox::Offer::of_host().missing() {
        None => true,
        Some(missing) => {
            eprintln!("not tried: {missing}");
            assert!(std::env::var_os("CI").is_none(), "{missing}");
            false
        }
    }
}

/// What no thread but the owner's may do, and what each may.
const COMMON: &[(&str, End)] = &[
    ("nothing", End::Done),
    ("allocate", End::Done),
    ("start_thread", End::Done),
    ("lock_and_sleep", End::Done),
    ("work_in_batches", End::Done),
    ("claim_the_processor", End::Dies("sched_setscheduler")),
    ("writable_memory", End::Done),
    ("signal_ourselves", End::Done),
    ("execute", End::Dies("execve")),
    ("fork", End::Dies("clone")),
    ("executable_memory", End::Dies("mmap")),
    ("make_executable", End::Dies("mprotect")),
    ("ptrace", End::Dies("ptrace")),
    ("signal_another", End::Dies("tgkill")),
    ("change_handler", End::Dies("rt_sigaction")),
    ("type_into_terminal", End::Dies("ioctl")),
    ("kvm_ioctl", End::Dies("ioctl")),
    ("raw_socket", End::Dies("socket")),
    ("netlink", End::Dies("socket")),
];
/// No file by name: the call itself is the end.
const NO_FILES: &[(&str, End)] = &[
    ("open_own", End::Dies("openat")),
    ("open_passwd", End::Dies("openat")),
    ("make_foreign", End::Dies("openat")),
];
const NO_SOCKETS: &[(&str, End)] = &[
    ("tcp", End::Dies("socket")),
    ("udp", End::Dies("socket")),
    ("unix_socket", End::Dies("socket")),
];
const NO_DISK: &[(&str, End)] = &[("disk", End::Dies("pwrite64"))];
/// Where there is no KVM behind the descriptor: the kernel was asked.
const RUNS: &[(&str, End)] = &[("run_ioctl", End::Fails(libc::ENOTTY))];
const RUNS_NOT: &[(&str, End)] = &[("run_ioctl", End::Dies("ioctl"))];

fn expect_all(kind: Kind, tables: &[&[(&str, End)]]) {
    if host_confines() {
        expect(kind, &tables.concat());
    }
}

#[test]
fn a_processor_of_kvm_runs_and_does_nothing_else() {
    expect_all(Kind::Kvm, &[COMMON, NO_FILES, NO_SOCKETS, NO_DISK, RUNS]);
}

#[test]
fn a_processor_in_software_touches_memory_only() {
    expect_all(Kind::Soft, &[COMMON, NO_FILES, NO_SOCKETS, NO_DISK, RUNS_NOT]);
}

#[test]
fn a_processor_that_drives_processes_traces_only_what_is_confined_as_it_is() {
    expect_all(Kind::Direct, &[COMMON, NO_FILES, NO_SOCKETS, NO_DISK, RUNS_NOT]);
}

#[test]
fn a_device_without_a_backend_touches_memory_only() {
    expect_all(Kind::Device, &[COMMON, NO_FILES, NO_SOCKETS, NO_DISK, RUNS_NOT]);
}

#[test]
fn a_disk_has_its_open_files_and_no_sockets() {
    let own = [("disk", End::Done)];
    expect_all(Kind::Block, &[COMMON, NO_FILES, NO_SOCKETS, RUNS_NOT, &own]);
}

#[test]
fn the_network_has_sockets_and_no_files() {
    let own = [
        ("tcp", End::Fails(libc::ECONNREFUSED)),
        ("udp", End::Done),
        ("udp_to_the_host", End::Done),
        ("tcp_listen", End::Dies("listen")),
        ("unix_socket", End::Dies("socket")),
    ];
    expect_all(Kind::Network, &[COMMON, NO_FILES, NO_DISK, RUNS_NOT, &own]);
}

#[test]
fn vsock_has_local_sockets_only() {
    let own = [
        ("unix_socket", End::Done),
        ("unix_listen", End::Dies("bind")),
        ("tcp", End::Dies("socket")),
        ("udp", End::Dies("socket")),
    ];
    expect_all(Kind::Vsock, &[COMMON, NO_FILES, NO_DISK, RUNS_NOT, &own]);
}

#[test]
fn the_console_writes_to_what_is_open_only() {
    expect_all(Kind::Console, &[COMMON, NO_FILES, NO_SOCKETS, NO_DISK, RUNS_NOT]);
}

/// What of the files a process has at all, whichever thread asks.
const FILES: &[(&str, End)] = &[
    ("open_own", End::Done),
    ("make_own", End::Done),
    ("read_read_only", End::Done),
    ("write_read_only", End::Fails(libc::EACCES)),
    ("cut_read_only", End::Fails(libc::EACCES)),
    ("open_foreign", End::Fails(libc::EACCES)),
    ("read_replaced", End::Done),
    ("read_beside_replaced", End::Fails(libc::EACCES)),
    ("open_passwd", End::Fails(libc::EACCES)),
    ("list_foreign", End::Fails(libc::EACCES)),
    ("make_foreign", End::Fails(libc::EACCES)),
    ("remove_foreign", End::Fails(libc::EACCES)),
    ("remove_own_directory", End::Fails(libc::EACCES)),
    ("rename_own_out", End::Fails(libc::EACCES)),
];

#[test]
fn requests_are_answered_with_the_instances_files_only() {
    let own = [
        ("unix_socket", End::Done),
        ("unix_listen", End::Done),
        ("link_read_only_in", End::Dies("linkat")),
        ("tcp", End::Dies("socket")),
        ("udp", End::Dies("socket")),
    ];
    expect_all(Kind::Control, &[COMMON, FILES, &own, RUNS_NOT]);
}

#[test]
fn the_process_has_the_instances_files_only_and_starts_no_program() {
    let own = [
        ("execute", End::Dies("execve")),
        ("fork", End::Dies("clone")),
        ("executable_memory", End::Dies("mmap")),
        ("make_executable", End::Dies("mprotect")),
        ("ptrace", End::Dies("ptrace")),
        ("claim_the_processor", End::Dies("sched_setscheduler")),
        ("signal_another", End::Dies("tgkill")),
        ("type_into_terminal", End::Dies("ioctl")),
        ("netlink", End::Dies("socket")),
        ("link_read_only_in", End::Dies("linkat")),
        // Without a network of its own an instance gets no TCP, though the owner's list has it.
        ("tcp", End::Fails(libc::EACCES)),
        ("tcp_listen", End::Fails(libc::EACCES)),
    ];
    expect_all(Kind::Main, &[FILES, RUNS, &own]);
}

#[test]
fn without_a_network_no_packet_leaves() {
    let end = match may_leave_network() {
        true => End::Fails(libc::ENETUNREACH),
        false => End::Done,
    };
    expect_all(Kind::Main, &[&[("udp_to_the_host", end)]]);
}

/// What `/proc/PID/task/TID/status` says under `field` of the thread called `name`.
fn status_of(process: u32, name: &str, field: &str) -> String {
    let threads = fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let mut texts = threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("status")).unwrap());
    let own = texts
        .find(|text| text.starts_with(&format!("Name:\t{name}\n")))
        .unwrap();
    let line = own
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.unwrap_or_else(|| panic!("{field} in {own}"))
        .trim()
        .to_owned()
}

#[test]
fn capabilities_are_dropped_and_cannot_come_back() {
    if !host_confines() {
        return;
    }
    let home = prepare();
    let mut child = command(home.path(), Kind::Control, "wait")
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "confined"));
    for name in ["tried", "spawner"] {
        for field in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(
                status_of(child.id(), name, field),
                "0000000000000000",
                "{name} {field}"
            );
        }
        assert_eq!(status_of(child.id(), name, "NoNewPrivs"), "1");
        assert_eq!(status_of(child.id(), name, "Seccomp"), "2");
    }
    // Two for the kind's own thread: the list of the process and its own.
    assert_eq!(status_of(child.id(), "tried", "Seccomp_filters"), "2");
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(DONE));
}
