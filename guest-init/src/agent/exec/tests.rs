//! Commands over a pair of sockets instead of vsock.

use super::*;
use crate::proto::Terminal;
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

/// Starts `exec` and returns the host's end.
fn run_on_pair(exec: Exec) -> (UnixStream, JoinHandle<Result<(), Error>>) {
    let (host, guest) = UnixStream::pair().unwrap();
    let guest = File::from(OwnedFd::from(guest));
    (host, thread::spawn(move || run(&exec, guest)))
}

fn exec(argv: &[&str]) -> Exec {
    let argv = argv.iter().map(|word| (*word).to_owned()).collect();
    Exec {
        argv,
        directory: Some("/".to_owned()),
        ..Exec::default()
    }
}

/// All frames to the end: output, errors, and the last frame.
fn collect(host: &mut UnixStream) -> (Vec<u8>, Vec<u8>, Frame) {
    let (mut output, mut errors) = (Vec::new(), Vec::new());
    loop {
        let frame = read_frame(host)
            .unwrap()
            .expect("the stream ended without saying how the command did");
        match frame.kind {
            Kind::Started => {}
            Kind::Output => output.extend(frame.payload),
            Kind::ErrorOutput => errors.extend(frame.payload),
            _ => return (output, errors, frame),
        }
    }
}

/// Commands run as root of the guest; elsewhere there is nothing to test.
fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

#[test]
fn streams_stay_apart_and_the_status_comes_last() {
    if !is_root() {
        return eprintln!("skipped: changing users needs root");
    }
    let (mut host, _) = run_on_pair(exec(&["sh", "-c", "echo out; echo err >&2; exit 7"]));
    let (output, errors, last) = collect(&mut host);
    assert_eq!(
        (output.as_slice(), errors.as_slice()),
        (b"out\n".as_slice(), b"err\n".as_slice())
    );
    assert_eq!(last.message::<Ended>().unwrap(), Ended::Exited(7));
}

#[test]
fn a_missing_working_directory_is_named_and_not_the_program() {
    if !is_root() {
        return eprintln!("skipped: changing users needs root");
    }
    let (mut host, _) = run_on_pair(Exec {
        directory: Some("/no/such/folder".to_owned()),
        ..exec(&["true"])
    });
    let (_, _, last) = collect(&mut host);
    let failure = last.message::<Failure>().unwrap();
    assert_eq!(failure.reason, Reason::Other);
    assert!(
        failure.message.contains("no directory /no/such/folder"),
        "{failure:?}"
    );
}

#[test]
fn much_input_comes_back_whole() {
    if !is_root() {
        return eprintln!("skipped: changing users needs root");
    }
    let (mut host, _) = run_on_pair(exec(&["cat"]));
    let sent: Vec<u8> = (0..2_000_000_u32).map(|n| (n / 3) as u8).collect();
    let mut writer = host.try_clone().unwrap();
    let bytes = sent.clone();
    let feeder = thread::spawn(move || {
        for chunk in bytes.chunks(50_000) {
            write_frame(&mut writer, Kind::Input, chunk).unwrap();
        }
        write_frame(&mut writer, Kind::InputEnd, b"").unwrap();
    });
    let (output, _, last) = collect(&mut host);
    feeder.join().unwrap();
    assert!(output == sent, "{} bytes came back", output.len());
    assert_eq!(last.message::<Ended>().unwrap(), Ended::Exited(0));
}

#[test]
fn a_command_that_cannot_run_reports_why() {
    if !is_root() {
        return eprintln!("skipped: changing users needs root");
    }
    for (argv, reason) in [
        (&["/no/such"][..], Reason::NotFound),
        (&["/etc/passwd"], Reason::Denied),
        (&[], Reason::Other),
    ] {
        let (mut host, _) = run_on_pair(exec(argv));
        let (_, _, last) = collect(&mut host);
        assert_eq!(last.kind, Kind::Failed);
        assert_eq!(last.message::<Failure>().unwrap().reason, reason, "{argv:?}");
    }
    let (mut host, _) = run_on_pair(Exec {
        user: Some("nobody-of-that-name".to_owned()),
        ..exec(&["true"])
    });
    assert_eq!(
        collect(&mut host).2.message::<Failure>().unwrap().reason,
        Reason::NotFound
    );
}

#[test]
fn a_signal_ends_the_whole_group() {
    if !is_root() {
        return eprintln!("skipped: changing users needs root");
    }
    let (mut host, _) = run_on_pair(exec(&["sh", "-c", "sleep 100 & wait"]));
    assert_eq!(read_frame(&mut host).unwrap().unwrap().kind, Kind::Started);
    write_frame(&mut host, Kind::Signal, &[15]).unwrap();
    assert_eq!(
        collect(&mut host).2.message::<Ended>().unwrap(),
        Ended::Signaled(15)
    );
}

#[test]
fn a_lost_connection_ends_the_command() {
    if !is_root() {
        return eprintln!("skipped: changing users needs root");
    }
    let (mut host, guest) = run_on_pair(exec(&["sleep", "100"]));
    assert_eq!(read_frame(&mut host).unwrap().unwrap().kind, Kind::Started);
    drop(host);
    assert!(guest.join().unwrap().is_err());
}

#[test]
fn a_terminal_has_the_requested_size() {
    if !is_root() {
        return eprintln!("skipped: changing users needs root");
    }
    let terminal = Terminal {
        kind: "dumb".to_owned(),
        size: Size {
            rows: 31,
            columns: 77,
        },
    };
    let command = Exec {
        terminal: Some(terminal),
        ..exec(&[
            "sh",
            "-c",
            "tty >/dev/null && stty size; echo $TERM; read line; echo got $line",
        ])
    };
    let (mut host, _) = run_on_pair(command);
    write_frame(&mut host, Kind::Input, b"words\r").unwrap();
    let (output, _, last) = collect(&mut host);
    let output = String::from_utf8(output).unwrap();
    assert!(
        output.contains("31 77") && output.contains("dumb") && output.contains("got words"),
        "{output}"
    );
    assert_eq!(last.message::<Ended>().unwrap(), Ended::Exited(0));
}

#[test]
fn a_daemon_that_holds_a_stream_open_does_not_delay_the_status() {
    if !is_root() {
        return eprintln!("skipped: changing users needs root");
    }
    let (mut host, _) = run_on_pair(exec(&["sh", "-c", "sleep 20 & echo started"]));
    let start = std::time::Instant::now();
    let (output, _, _) = collect(&mut host);
    assert_eq!(output, b"started\n");
    assert!(start.elapsed().as_secs() < 10);
}
